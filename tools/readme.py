"""Write README.md from nbs/index.ipynb with nbconvert; hidden cells stay out, pictures are linked where they lie."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent


def shown(cell):
    "A cell as a reader of the README sees it: of a cell marked `#| echo: false`, only what it made."
    if cell.cell_type == "code" and "#| echo: false" in cell.source:
        return nbformat.v4.new_markdown_cell("".join(o.data["text/markdown"] for o in cell.outputs))
    return cell


def readme() -> str:
    "The README's text."
    nb = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
    nb.cells = [shown(c) for c in nb.cells if not c.source.lstrip().startswith("#| hide")]
    text, _ = MarkdownExporter().from_notebook_node(nb)
    # pictures and notebooks lie beside index.ipynb, one folder below the README
    text = re.sub(r"(\]\(|src=\")(?=images/|\d\d\w?_\w+\.ipynb)", r"\1nbs/", text)
    text = text.replace("](../", "](") # the README lies one folder above the notebook
    return text.strip() + "\n"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
