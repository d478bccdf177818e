"""Does every link lead somewhere? In the notebooks, the README and the guides, and in the site once it is built. Addresses on the web are checked for their form only."""
import html
import json
import re
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
CODE = re.compile(r"^(```|~~~).*?^\1|(`+)[^`].*?\2|\$\$.*?\$\$", re.M | re.S)


@cache
def text(file):
    "What is written in a file, without its code and formulas."
    said = file.read_text(encoding="utf-8")
    if file.suffix == ".html": return said
    if file.suffix == ".ipynb":
        cells = json.loads(said)["cells"]
        said = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        said += "\n\n".join("".join(o.get("data", {}).get("text/markdown", "")) for c in cells for o in c.get("outputs", []))
    return said if file.suffix == ".py" else re.sub(CODE, "", said)


@cache
def anchors(file):
    "The names in a file that a link can end in: those of Jupyter, of GitHub, or of the page itself."
    if file.suffix == ".html": return set(map(html.unescape, re.findall(r'\bid="([^"]+)"', text(file))))
    written = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.suffix == ".ipynb" else [dict(cell_type="markdown", source=[file.read_text(encoding="utf-8")])]
    body = "\n\n".join(re.sub(r"^(```|~~~).*?^\1", "", "".join(c["source"]), flags=re.M | re.S) for c in written if c["cell_type"] == "markdown")
    heads = [re.sub(r"[`*]", "", h).strip() for h in re.findall(r"^#+ (.+)$", body, re.M)]
    if file.suffix == ".ipynb": return {h.replace(" ", "-") for h in heads}
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


def targets(file):
    "Where the links and pictures of a file lead."
    found = re.findall(r'<\w[^<>]*?\s(?:href|src)="([^"]*)"', text(file))
    if file.suffix != ".html": found += re.findall(r"\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)", text(file))
    return dict.fromkeys(map(html.unescape, found))


def fault(file, target):
    "What is wrong with a link, or nothing."
    try: url = urlsplit(target)
    except ValueError: return "is no address"
    if url.scheme == "data": return
    if url.scheme == "mailto" and "@" in url.path: return
    if url.scheme or url.netloc: return None if url.scheme in ("http", "https") and re.fullmatch(r"[\w.-]+(:\d+)?", url.netloc) and " " not in target else "is no address on the web"
    there = (file.parent / unquote(url.path)).resolve() if url.path else file
    if not there.exists(): return "is not there"
    if url.fragment and there.suffix in (".html", ".ipynb", ".md") and unquote(url.fragment) not in anchors(there): return f"has no such heading in {there.name}"


def main(folder=None):
    "Check the sources, and a folder of pages if there is one; the number of links, and those that lead nowhere."
    files = [*sorted((ROOT / "nbs").glob("*.ipynb")), ROOT / "README.md", *sorted((ROOT / "data_prep").glob("*.md"))]
    files += sorted(Path(folder).resolve().rglob("*.html")) if folder else []
    seen = [(f, t) for f in files for t in targets(f)]
    bad = [f"{f.relative_to(ROOT) if f.is_relative_to(ROOT) else f}: {t or 'an empty link'} {why}" for f, t in seen if (why := fault(f, t) if t else "leads nowhere")]
    print("\n".join(bad) or f"{len(seen)} links in {len(files)} files lead somewhere")
    return bool(bad)


if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
