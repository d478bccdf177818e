"""Lay an unpacked download out as this project reads it, and check it.

    python data_prep/prepare.py NAME DOWNLOAD DIR [--copy]
"""
from cmlfa.own import lay_out
from cmlfa.prep import check, table
from cmlfa.support import Parser, command
from cmlfa.synth import LAYOUTS


@command
def main(argv=None):
    "Find annotations and images, link them, run the doctor, say what to do next."
    p = Parser(description="Lay a download out and check it.")
    p.add_argument("name", metavar="NAME", help=", ".join(LAYOUTS))
    p.add_argument("download", metavar="DOWNLOAD", help="the unpacked download")
    p.add_argument("root", metavar="DIR", help="folder that will hold the data set's folder")
    p.add_argument("--copy", action="store_true", help="copy the images instead of linking to them")
    a = p.parse_args(argv)
    lay_out(a.name, a.download, a.root, a.copy)
    report = check(a.root, a.name, progress=True)
    print(table(report))
    print(f"Next: cmlfa_check {a.root} --html report.html" if report.broken else f"Next: cmlfa_pack {a.root} --dataset_name {a.name}")
    raise SystemExit(int(report.broken))


if __name__ == "__main__": main()
