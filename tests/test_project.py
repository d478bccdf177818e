"""The project as a thing that is installed and read."""
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


def test_the_package_works_outside_the_checkout(tmp_path):
    source = tmp_path / "source" # setuptools builds inside the folder it is given
    shutil.copytree(ROOT / "cmlfa", source / "cmlfa", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md"): shutil.copy(ROOT / name, source)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", tmp_path / "site", source]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import cmlfa.model as m; print(m.__file__); m.CMLFA"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True)
    assert done.returncode == 0 and str(tmp_path / "site") in done.stdout, done.stdout + done.stderr


def test_every_command_answers_help():
    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini")
    for script in cfg["DEFAULT"]["console_scripts"].split():
        name = script.split("=")[0]
        done = subprocess.run([Path(sys.executable).with_name(name), "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and name in done.stdout, done.stderr


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_notebooks_are_committed_executed_and_clean(file):
    cells = [c for c in json.loads(file.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    outputs = [o for c in cells for o in c["outputs"]]
    assert outputs, "not executed"
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", {}) for o in outputs) or "](images" in file.read_text(encoding="utf-8"), "no picture"
    assert not re.search(r"/(root|home|tmp|work|Users)/", json.dumps(outputs)), "a machine's path"
    assert file.stat().st_size < 500_000
