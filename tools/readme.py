"""Write README.md from nbs/index.ipynb with nbconvert; hidden cells stay out, pictures are linked where they lie."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent


def readme() -> str:
    "The README's text."
    nb = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
    nb.cells = [c for c in nb.cells if not c.source.lstrip().startswith("#| hide")]
    text, _ = MarkdownExporter().from_notebook_node(nb)
    # pictures and notebooks lie beside index.ipynb, one folder below the README
    text = re.sub(r"(\]\(|src=\")(?=images/|\d\d\w?_\w+\.ipynb)", r"\1nbs/", text)
    return text.strip() + "\n"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
