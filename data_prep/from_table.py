"""Bring your own: a table of path, identity, caption and split becomes a data set in a public layout.

    python data_prep/from_table.py TABLE IMAGES DIR [--layout CUHK-PEDES] [--seed 0] [--copy]
"""
from cmlfa.own import import_table
from cmlfa.support import Parser, command
from cmlfa.synth import LAYOUTS


@command
def main(argv=None):
    "Read the table, lay the data set out, say what to do next."
    p = Parser(description="A table of images and captions as a data set.")
    p.add_argument("table", help="CSV or JSON lines with path, identity, caption and perhaps split")
    p.add_argument("images", help="folder that the paths start from")
    p.add_argument("root", metavar="DIR", help="folder that will hold the data set's folder")
    p.add_argument("--layout", default="CUHK-PEDES", help=f"{', '.join(LAYOUTS)} (default CUHK-PEDES)")
    p.add_argument("--seed", type=int, default=0, help="of the splits, where the table has none (default 0)")
    p.add_argument("--copy", action="store_true", help="copy the images instead of linking them")
    a = p.parse_args(argv)
    print(f"{import_table(a.table, a.images, a.root, a.layout, a.seed, a.copy)}: written. Next: cmlfa_check {a.root}")


if __name__ == "__main__": main()
