"""The table of faults is true: what it names is there, and what is there it names."""
import ast
import json
import re
from pathlib import Path

import pytest
import soak

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TEXT = (HERE / "README.md").read_text(encoding="utf-8")
ROWS = [[c.strip() for c in line.strip("|").split("|")] for line in TEXT.split("<!-- soak -->")[0].splitlines() if line.startswith("| ") and not line.startswith("| fault |")]


def functions_in(file):
    "Names of the test functions in a file."
    return {n.name for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS, ids=[r[0] for r in ROWS])
def test_what_a_row_names_is_there(row):
    assert len(row) == 4 and all(row), row
    named = re.findall(r"`([^`]+)`", row[2])
    assert named
    for name in named:
        if "::" in name: assert name.split("::")[1] in functions_in(ROOT / name.split("::")[0]), name
        elif name.startswith("soak: "): assert name.removeprefix("soak: ") in soak.PARTS and "`make soak`" in row[3], name
        else:
            file, words = name.split(": ", 1)
            assert any(words in "".join(c["source"]) for c in json.loads((ROOT / file).read_text(encoding="utf-8"))["cells"]), name
    assert ("`make test`" in row[3]) == any("::" in n or n.startswith("nbs/") for n in named)


def test_every_fault_test_and_every_long_trial_is_named():
    there = {f"tests/faults/{f.name}::{t}" for f in HERE.glob("test_*.py") if f.name != Path(__file__).name for t in functions_in(f)}
    there |= {f"soak: {part}" for part in soak.PARTS}
    assert not there - {n for row in ROWS for n in re.findall(r"`([^`]+)`", row[2])}


def test_the_report_in_the_table_is_the_one_that_was_measured():
    shown = TEXT.split("<!-- soak -->")[1].split("<!-- /soak -->")[0].strip()
    assert shown == soak.table(json.loads(soak.REPORT.read_text(encoding="utf-8"))) if soak.REPORT.exists() else not shown
