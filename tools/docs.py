"""The site: pages for Sphinx, made from the executed notebooks, their map, and the comments beside the parameters of the package."""
import base64
import html
import inspect
import re
import shutil
import sys
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import nbformat
from docutils.nodes import make_id
from fastcore.docments import docments, empty

ROOT = Path(__file__).resolve().parent.parent
NBS, PAGES, SITE = ROOT / "nbs", ROOT / "_docs/pages", ROOT / "_docs/html"
PICTURES = {"image/png": "png", "image/jpeg": "jpg"}


@cache
def read(name):
    "The cells of a notebook that a reader is to see."
    return [c for c in nbformat.read(NBS / f"{name}.ipynb", as_version=4).cells if not re.search(r"^#\| ?(hide|default_exp)\b", c.source, re.M)]


def title(name):
    "A notebook's own heading, and the line below it."
    lines = read(name)[0].source.splitlines()
    return lines[0].removeprefix("# "), next((line.removeprefix("> ") for line in lines if line.startswith("> ")), "")


@cache
def parts():
    "Part -> its notebooks, in the order of learning, as the map's table has them."
    table = next(o.data["text/markdown"] for c in read("20_map") if c.cell_type == "code" for o in c.outputs if "text/markdown" in o.get("data", {}))
    found = {}
    for part, name in re.findall(r"^\| (?:\*\*(.+?)\*\*|\[.*?\]\((\w+)\.ipynb\)) \|", table, re.M):
        if part: here = found.setdefault(part, [])
        else: here.append(name)
    there, place = sorted(p.stem for p in NBS.glob("[0-9]*.ipynb")), {n: part for part, names in found.items() for n in names}
    for name in there: # a notebook that the map does not know yet goes to the one before it
        if name not in place:
            found[place.setdefault(name, place[max(n for n in place if n < name)])].append(name)
            print(f"{name} is not in the table of nbs/20_map.ipynb; execute that notebook", file=sys.stderr)
    return {part: [n for n in names if n in there] for part, names in found.items()}


def exports():
    "Notebook -> the module that it exports."
    return {n: m[1] for p in NBS.glob("[0-9]*.ipynb") for n in [p.stem] if (m := re.search(r"#\| default_exp (\w+)", p.read_text(encoding="utf-8")))}


def taken(file):
    "A file of the repository that a page links to; it comes along."
    if (ROOT / file).is_file():
        (PAGES / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, PAGES / file)
    return file


def links(text, up=""):
    "Links between notebooks, guides and README become links between pages; inside HTML too, whose anchors are the site's."
    text = re.sub(r"^```console$", "```sh", text, flags=re.M) # commands without a prompt, which `console` would take for what they print
    text = re.sub(r"(\]\()(?:\.\./README\.md|index\.ipynb)", rf"\1{up}index.md", text)
    text = re.sub(r"(\]\()(?:\.\./)?(\w+)\.ipynb", rf"\1{up}\2.md", text)
    text = re.sub(r"(\]\()\.\./data_prep/", r"\1data_prep/", text)
    text = re.sub(r"(\]\()\.\./([\w./-]+\.(?:json|yaml|csv|py))(?=\))", lambda m: m[1] + up + taken(m[2]), text)
    text = re.sub(r"(\]\([^)\s]*)(#[^)]+)", lambda m: m[1] + m[2].lower(), text)
    return re.sub(r'href="(\w+)\.ipynb(?:#([^"]*))?"', lambda m: f'href="{m[1]}.html' + (f'#{make_id(html.unescape(m[2]).replace("-", " "))}"' if m[2] else '"'), text)


def slug(heading):
    "The anchor that Jupyter gives a heading, in small letters as GitHub writes them."
    return heading.strip().replace("`", "").replace(" ", "-").lower()


def fence(text, kind, classes=""):
    "Text as a block of code, whatever backticks are in it."
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{{code-block}} {kind}\n" + (f":class: {classes}\n" if classes else "") + f"\n{text.rstrip()}\n{ticks}"


def output(o, file):
    "What a cell made, as Markdown; `file` is where a picture goes, without its ending."
    data = o.get("data", {})
    if o.output_type == "stream": return fence(o.text, "text", "out")
    if "text/markdown" in data: return links(data["text/markdown"])
    for kind, ending in PICTURES.items():
        if kind in data:
            Path(f"{file}.{ending}").write_bytes(base64.b64decode(data[kind]))
            return f"```{{image}} pictures/{file.name}.{ending}\n:class: out\n:alt: what the code above draws\n```"
    if "text/html" in data: return '<div class="out html">' + re.sub(r"\n\s*\n", "\n", data["text/html"]) + "</div>" # a blank line would end it
    return fence(data["text/plain"], "text", "out")


def page(name, module=None):
    "A notebook as a page in Markdown."
    out = []
    for i, c in enumerate(read(name)):
        if c.cell_type != "code":
            out.append(links(c.source))
            if i == 0 and module: out.append(f"{{.module}}\nThe code with a bar beside it becomes the module [`cmlfa.{module}`](api/{module}.md).")
            continue
        code = re.sub(r"^#\|.*\n?", "", c.source, flags=re.M).strip()
        if code and not re.search(r"^#\| ?echo: false", c.source, re.M): out.append(fence(code, "python", "exported" if re.search(r"^#\| ?export", c.source, re.M) else ""))
        out += [output(o, PAGES / "pictures" / f"{name}-{i}-{k}") for k, o in enumerate(c.outputs)]
    return "\n\n".join(out) + "\n"


def cell(x):
    "Text in a table."
    return re.sub(r"\s+", " ", str(x)).replace("|", "\\|")


def kind(x):
    "An annotation as one writes it."
    return x if isinstance(x, str) else x.__name__ if isinstance(x, type) and not hasattr(x, "__args__") else re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", str(x))


def parameters(f):
    "The table of a function's parameters, from the comments beside them."
    rows, above = [], {n: said for base in reversed(getattr(f, "__mro__", ())) if is_dataclass(base) for n, said in docments(base).items() if said} # fields that a dataclass inherits
    for name, d in docments(f, full=True).items():
        if name == "self" or name == "return" and not d.docment: continue
        default = "" if d.default is empty or name == "return" else f"`{cell(d.default if len(repr(d.default)) < 60 else '…') !r}`" if isinstance(d.default, str) else f"`{cell(getattr(d.default, '__name__', repr(d.default)))}`"
        given = "" if d.anno is empty or d.anno is None else f"`{cell(kind(d.anno))}`"
        rows.append(f"| {'*returns*' if name == 'return' else f'`{name}`'} | {given} | {default} | {cell(d.docment or above.get(name, ''))} |")
    return "\n".join(["| parameter | type | default | meaning |", "|---|---|---|---|", *rows]) if rows else ""


def signature(f):
    "Names and short defaults; the table says the rest."
    try: given = [p for p in inspect.signature(f).parameters.values() if p.name != "self"]
    except (TypeError, ValueError): return ""
    short = lambda p: "=" + repr(p.default) if p.default is not empty and len(repr(p.default)) < 20 and "<" not in repr(p.default) else "=…" if p.default is not empty else ""
    return ", ".join(("*" if p.kind == p.VAR_POSITIONAL else "**" if p.kind == p.VAR_KEYWORD else "") + p.name + short(p) for p in given)


def entry(name, thing, where, directive):
    "One function, class or method of the reference."
    said = inspect.getdoc(thing) or ""
    if inspect.isclass(thing) and said.startswith(f"{thing.__name__}("): said = "" # what dataclass makes up
    ours = not inspect.isclass(thing) or hasattr(thing, "_fields") or getattr(thing.__init__, "__module__", "").startswith("cmlfa") # else its arguments are those of the library's class that it is built on
    body = [said, parameters(thing) if ours else "", where]
    if inspect.isclass(thing):
        own = [(n, getattr(thing, n)) for n, v in vars(thing).items() if not n.startswith("_") and (inspect.isfunction(v) or isinstance(v, (classmethod, staticmethod)))]
        body += [entry(n, m, "", "method") for n, m in own if inspect.getdoc(m)]
    fences = "`" * (5 if directive == "class" else 4)
    return f"{fences}{{py:{directive}}} {name}({signature(thing) if ours else ''})\n\n" + "\n\n".join(b for b in body if b) + f"\n{fences}"


def sections(name):
    "What a notebook's exported cells define -> the heading that they stand under."
    heading, found = title(name)[0], {}
    for c in read(name):
        if c.cell_type == "markdown": heading = (re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", c.source, flags=re.S), re.M) or [heading])[-1]
        elif "#| export" in c.source: found |= dict.fromkeys(re.findall(r"^(?:def|class) (\w+)", c.source, re.M), heading)
    return found


def reference(module, name):
    "The reference of one module, built in the notebook `name`."
    m, heads = import_module(f"cmlfa.{module}"), sections(name)
    out = ["---\norphan: true\n---", f"# cmlfa.{module}", m.__doc__ or "", f"Built, shown and tested in [{name.split('_')[0]} {title(name)[0]}](../{name}.md). One of [all modules](modules.md).", f"```{{py:module}} cmlfa.{module}\n```"]
    rest = []
    for n in m.__all__:
        thing = getattr(m, n)
        if n not in heads or not callable(thing): rest.append(f"`{n}`"); continue
        out.append(entry(n, thing, f"*Built under [{heads[n]}](../{name}.md#{slug(heads[n])}).*", "class" if inspect.isclass(thing) else "function"))
    if rest: out.append("Also: " + ", ".join(rest) + ".")
    return "\n\n".join(o for o in out if o) + "\n"


def toctree(entries, **options):
    "A branch of the navigation."
    return "\n".join(["```{toctree}", *(f":{k}: {v}" for k, v in options.items()), "", *entries, "```"])


def write(file, text):
    "One page."
    file = PAGES / file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def main():
    "All pages."
    shutil.rmtree(PAGES, ignore_errors=True)
    (PAGES / "pictures").mkdir(parents=True)
    shutil.copytree(NBS / "images", PAGES / "images")
    modules, named = exports(), lambda n: f"{n.split('_')[0]} {title(n)[0]} <../{n}>"
    for name in [p.stem for p in NBS.glob("[0-9]*.ipynb")]: write(f"{name}.md", page(name, modules.get(name)))
    branches = []
    for part, names in parts().items():
        branches.append(f"parts/{make_id(part)}")
        says = "\n".join(f"| [{n.split('_')[0]} {title(n)[0]}](../{n}.md) | {title(n)[1]} |" for n in names)
        write(f"{branches[-1]}.md", f"# {part}\n\n| notebook | what it holds |\n|---|---|\n{says}\n\n{toctree(map(named, names), hidden='')}\n")
    for guide in (ROOT / "data_prep").glob("*.md"): write(f"data_prep/{guide.name}", links(guide.read_text(encoding="utf-8"), "../"))
    write("data_prep/README.md", (PAGES / "data_prep/README.md").read_text(encoding="utf-8") + "\n" + toctree([g.stem for g in sorted((ROOT / "data_prep").glob("*.md")) if g.stem != "README"], hidden="") + "\n")
    for name, module in modules.items(): write(f"api/{module}.md", reference(module, name))
    order = [modules[n] for names in parts().values() for n in names if n in modules]
    says = "\n".join(f"| [`cmlfa.{m}`]({m}.md) | {cell(import_module(f'cmlfa.{m}').__doc__)} |" for m in order)
    write("api/modules.md", f"# All modules\n\n| module | what it is |\n|---|---|\n{says}\n")
    write("index.md", "\n\n".join([page("index"), toctree(branches, hidden="", caption="Notebooks"), toctree(["data_prep/README"], hidden="", caption="Data sets"), toctree(["api/modules", "Index of names <genindex>"], hidden="", caption="Reference")]) + "\n")


if __name__ == "__main__": main()
