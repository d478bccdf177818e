"""In a notebook a class grows cell by cell with fastcore's @patch, which type checkers cannot follow. Here each such method is put into its class: in a copy, for mypy, and in stubs, for those who use the package."""
import ast
import re
import shutil
import subprocess
import sys
from itertools import repeat
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / ".mypy_cache" / "folded" # always the same place, so that mypy knows what has not changed
BUILT = ROOT / ".mypy_cache" / "built"
KINDS = {"patch": "", "patch(as_prop=True)": "@property", "patch(cls_method=True)": "@classmethod"} # what becomes of the decorator


def owner(node: ast.stmt) -> str | None:
    "The class that a function is patched into; None if it is no such function."
    if not isinstance(node, ast.FunctionDef) or not any(ast.unparse(d) in KINDS for d in node.decorator_list): return None
    return ast.unparse(node.args.args[0].annotation)


def fold(source: str) -> tuple[str, list[int]]:
    "A module with every patched method inside its class; and where each of its lines stands in the original."
    lines, tree = source.splitlines(), ast.parse(source)
    methods: dict[str, list[tuple[int, str]]] = {}
    moved: set[int] = set()
    for node in tree.body:
        if not (name := owner(node)): continue
        span = range(node.decorator_list[0].lineno, node.end_lineno + 1)
        moved |= set(span)
        for n in span:
            line = lines[n - 1]
            if line.startswith("@patch"): line = KINDS[line[1:].split(" #")[0].strip()]
            if n == node.lineno: line = re.sub(rf"\((self|cls): {name}\b", r"(\1", line)
            methods.setdefault(name, []).append((n, f"    {line}" if line else ""))
    ends = {node.end_lineno: node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    out = []
    for n, line in enumerate(lines, 1):
        if n not in moved: out.append((n, line))
        out += methods.pop(ends.get(n, ""), [])
    if methods: raise SystemExit(f"{', '.join(methods)}: is patched in another module than its own; write a function there, or a class that inherits from it")
    return "\n".join(line for _, line in out) + "\n", [n for n, _ in out]


def kind_of(value: ast.expr, said: dict[str, str]) -> str:
    "The type of a value, where one can read it off: an argument's, or the class that is called; Any where there is more to it."
    if isinstance(value, ast.Name): return said.get(value.id, "Any")
    name = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
    return name if name.split(".")[-1][:1].isupper() else "Any"


def declared(cls: ast.ClassDef) -> set[str]:
    "The attributes that a class declares itself."
    return {n.target.id for n in cls.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}


def attributes(cls: ast.ClassDef, inherited: dict[str, set[str]]) -> dict[str, str]:
    "What the methods of a class set on `self` beside what it or the class it is built on declares, and of which type."
    there = declared(cls).union(*(inherited.get(ast.unparse(b), set()) for b in cls.bases))
    found: dict[str, str] = {}
    for method in (n for n in cls.body if isinstance(n, ast.FunctionDef)):
        said = {a.arg: ast.unparse(a.annotation) for a in method.args.args if a.annotation}
        for node in (n for n in ast.walk(method) if isinstance(n, ast.Assign)):
            to, value = node.targets[0], node.value
            values = value.elts if isinstance(value, ast.Tuple) else repeat(ast.Constant(None)) # of what a function gives to several names, nothing is known
            for one, v in zip(to.elts, values) if isinstance(to, ast.Tuple) else [(to, value)]:
                if not isinstance(one, ast.Attribute) or ast.unparse(one.value) != "self" or one.attr in there: continue
                kind = kind_of(v, said)
                found[one.attr] = kind if found.get(one.attr, kind) == kind else "Any"
    return found


def stub(source: str, inherited: dict[str, set[str]]) -> str:
    "What a type checker needs of a module: signatures and attributes, no bodies; `inherited` says what other classes declare."
    folded = fold(source)[0]
    tree = ast.parse(folded)
    tree.body = [n for n in tree.body if not isinstance(n, (ast.If, ast.Expr)) or isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    for name in (a for n in tree.body if isinstance(n, ast.ImportFrom) and n.level for a in n.names): name.asname = name.asname or name.name # else it could not be imported from here, as it can from the module
    for cls in (n for n in tree.body if isinstance(n, ast.ClassDef)):
        cls.body += [ast.parse(f"{name}: {kind}").body[0] for name, kind in attributes(cls, inherited).items()]
    for f in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)): f.body = [ast.Expr(ast.Constant(ast.get_docstring(f) or ...))]
    text = ast.unparse(tree)
    for name, known in re.findall(r"def (\w+)\(.*(# type: ignore\[[\w-]+\])", folded): text = re.sub(rf"( def {name}\(.*)", rf"\1 {known}", text) # comments are lost otherwise
    return f"from typing import Any\n{text}\n"


def write_stubs(folder: Path) -> None:
    "A stub beside each module of a built package that patches a class."
    sources = {f: f.read_text(encoding="utf-8") for f in sorted(folder.glob("*.py"))}
    inherited = {n.name: declared(n) for s in sources.values() for n in ast.parse(s).body if isinstance(n, ast.ClassDef)}
    for file, source in sources.items():
        if any(owner(n) for n in ast.parse(source).body): file.with_suffix(".pyi").write_text(stub(source, inherited), encoding="utf-8")


def write_copy() -> dict[str, list[int]]:
    "The folded package; where the lines of each file come from."
    (COPY / "cmlfa").mkdir(parents=True, exist_ok=True)
    numbers = {}
    for file in sorted((ROOT / "cmlfa").glob("*.py")):
        text, numbers[f"cmlfa/{file.name}"] = fold(file.read_text(encoding="utf-8"))
        there = COPY / "cmlfa" / file.name
        if not there.exists() or there.read_text(encoding="utf-8") != text: there.write_text(text, encoding="utf-8")
    for file in (COPY / "cmlfa").glob("*.py"):
        if f"cmlfa/{file.name}" not in numbers: file.unlink()
    return numbers


def mypy(folder: Path, args: list[str]) -> tuple[int, list[str]]:
    "Exit status and lines of mypy over the package in a folder."
    done = subprocess.run([sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", COPY.parent, *args, "cmlfa"], cwd=folder, capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def main(args: list[str]) -> int:
    "Run mypy over the copy, where the places that it names are those of the package; then over the package with its stubs, as it is installed."
    numbers = write_copy()
    status, lines = mypy(COPY, args)
    for line in lines:
        m = re.match(r"(cmlfa/\w+\.py):(\d+):(.*)", line)
        print(f"{m[1]}:{numbers[m[1]][int(m[2]) - 1]}:{m[3]}" if m else line)
    if status: return status
    shutil.rmtree(BUILT, ignore_errors=True)
    shutil.copytree(ROOT / "cmlfa", BUILT / "cmlfa", ignore=shutil.ignore_patterns("__pycache__", "models"))
    write_stubs(BUILT / "cmlfa")
    status, lines = mypy(BUILT, args)
    print("with stubs:", *lines, sep="\n" if status else " ")
    return status


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
