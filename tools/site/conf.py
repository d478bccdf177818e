"""Sphinx's settings for the site that `make docs` builds; the pages come from tools/docs.py."""
import sys
from configparser import ConfigParser
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
cfg = ConfigParser(delimiters=["="])
cfg.read(HERE.parent.parent / "settings.ini", encoding="utf-8")

project, author, copyright = "CMLFA", cfg["DEFAULT"]["author"], cfg["DEFAULT"]["copyright"]
version = release = cfg["DEFAULT"]["version"]
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath", "html_image", "attrs_block"]
myst_heading_anchors = 4
myst_heading_slug_func = "docs.slug"
suppress_warnings = ["myst.header"] # a notebook may go from a title to its third level
add_module_names = False
python_maximum_signature_line_length = 90
html_theme = "furo"
html_title = "CMLFA"
html_static_path = [str(HERE / "static")]
html_css_files = ["style.css"]
html_favicon = str(HERE / "static/icon.svg")
templates_path = [str(HERE / "templates")]
html_copy_source = False
html_math_renderer = "mathml"
pygments_style, pygments_dark_style = "friendly", "github-dark"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2a5f8f", "color-brand-content": "#1b5c96"},
    "dark_css_variables": {"color-brand-primary": "#8fc1ea", "color-brand-content": "#8fc1ea"},
}


def setup(app):
    "Formulas as MathML: browsers draw it themselves, so no script has to be fetched."
    def of(display):
        def visit(self, node):
            self.body.append(convert(node.astext(), display=display))
            raise SkipNode
        return visit
    app.add_html_math_renderer("mathml", (of("inline"), None), (of("block"), None))
