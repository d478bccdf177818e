"""In a notebook a class grows cell by cell with fastcore's @patch, which type checkers cannot follow. Here each such method is put into its class: in a copy, for mypy."""
import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / ".mypy_cache" / "folded" # always the same place, so that mypy knows what has not changed
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


def main(args: list[str]) -> int:
    "Run mypy over the copy; the places that it names are those of the package."
    numbers = write_copy()
    done = subprocess.run([sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", COPY.parent, *args, "cmlfa"], cwd=COPY, capture_output=True, text=True)
    for line in (done.stdout + done.stderr).splitlines():
        m = re.match(r"(cmlfa/\w+\.py):(\d+):(.*)", line)
        print(f"{m[1]}:{numbers[m[1]][int(m[2]) - 1]}:{m[3]}" if m else line)
    return done.returncode


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
