"""The table of faults is true: what it names is there, and what is there it names."""
import ast
import json
import random
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


def test_memory_that_grows_is_seen():
    rng = random.Random(0)
    flat = [500 + 100 * 2 ** -n + rng.uniform(-2, 2) for n in range(200)] # it fills up at the beginning
    assert abs(soak.drift(flat)) < .005
    assert soak.drift([m + .12 * n for n, m in enumerate(flat)]) > .02 # 10 KB in each of 12 steps
    assert soak.drift([m + 30 * (n > 150) for n, m in enumerate(flat)]) > .02 # at once


def test_an_answer_that_mixes_two_moments_is_seen():
    log = ['{"1.jpg": "a"}', '{"2.jpg": "b"}', '{"1.jpg": "c"}', '{"2.jpg": null}']
    assert soak.moments_of([["a"], ["a", "b"], ["b", "c"], ["c"]], log) == ({0, 1, 2}, 0)
    assert soak.moments_of([["a", "c"]], log)[1] == 1 # the second took the first one's place
    assert soak.moments_of([["c", "not noted down"]], log)[1] == 0 # the writer was killed before
    assert soak.moments_of([["b", "not noted down"]], log)[1] == 1
