"""The project as a thing that is installed and read."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run
from forked import BIN, ENTRIES

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


def test_the_package_works_outside_the_checkout(tmp_path):
    source = tmp_path / "source" # setuptools builds inside the folder it is given
    shutil.copytree(ROOT / "cmlfa", source / "cmlfa", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "tools").mkdir()
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "tools/fold.py"): shutil.copy(ROOT / name, source / name)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", tmp_path / "site", source]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for file in ("py.typed", "models/synth-small/model.safetensors"): assert (tmp_path / "site/cmlfa" / file).is_file(), file
    code = "import cmlfa.model as m; print(m.__file__); m.CMLFA"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True)
    assert done.returncode == 0 and str(tmp_path / "site") in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", ENTRIES)
def test_every_command_is_installed_and_answers_help(name, tmp_path):
    script = BIN / name
    assert os.access(script, os.X_OK) and "import {1}".format(*ENTRIES[name]) in script.read_text() and ENTRIES[name][0] in script.read_text()
    done = run(name, "--help", cwd=tmp_path)
    assert done.returncode == 0 and name in done.stdout and not done.stderr, done.stderr


def test_an_installed_command_starts_by_itself(tmp_path):
    done = subprocess.run([BIN / "cmlfa_train", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "cmlfa_train" in done.stdout and not done.stderr, done.stderr


def test_ctrl_c_while_a_command_is_still_importing_is_a_sentence(tmp_path):
    (tmp_path / "cmlfa_try").write_text("import cmlfa\nraise KeyboardInterrupt")
    done = subprocess.run([sys.executable, "cmlfa_try"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "cmlfa_try: stopped by Ctrl-C.\n")


def test_a_home_that_may_not_be_written_is_no_news_to_a_command(tmp_path):
    (tmp_path / "cmlfa_try").write_text("import cmlfa, matplotlib")
    done = subprocess.run([sys.executable, "cmlfa_try"], cwd=tmp_path, env={k: v for k, v in os.environ.items() if k != "MPLCONFIGDIR"} | {"PYTHONPATH": str(ROOT), "HOME": os.devnull, "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_everything_uses_no_network_and_says_nothing(tmp_path):
    code = f"""import importlib, sys
sys.path.insert(0, {str(ROOT / "tools")!r})
from offline import stay_here
sys.addaudithook(stay_here)
import logging, matplotlib # which sets its own level
before = logging.root.level, logging.getLogger("matplotlib").level
for name in {sorted(f.stem for f in (ROOT / "cmlfa").glob("[a-z]*.py"))}: importlib.import_module("cmlfa." + name)
assert (logging.root.level, logging.getLogger("matplotlib").level) == before and not sys.excepthook.__module__.startswith("cmlfa") # on Python 3.10 a package of IPython's has one
import socket
try: socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError as e: print(e)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "192.0.2.1: the tests use no network\n", ""), done


def test_the_tests_themselves_use_no_network(tmp_path):
    with socket.socket(type=socket.SOCK_DGRAM) as u, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as v:
        for leave in (lambda: socket.create_connection(("192.0.2.1", 80), timeout=1), lambda: socket.getaddrinfo("example.org", 443), lambda: socket.gethostbyname("example.org"), lambda: socket.gethostbyname_ex("127.example.org"),
                      lambda: socket.gethostbyaddr("192.0.2.1"), lambda: socket.getnameinfo(("192.0.2.1", 80), 0), lambda: u.sendto(b"?", ("192.0.2.1", 53)), lambda: u.sendmsg([b"?"], [], 0, ("192.0.2.1", 53)), lambda: v.sendto(b"?", ("2001:db8::1", 53)), lambda: u.connect(("8.8.8.8", 80))):
            with pytest.raises(OSError, match="the tests use no network"): leave()
        u.bind(("127.0.0.1", 0))
        with socket.socket(type=socket.SOCK_DGRAM) as w: w.sendto(b"!", u.getsockname())
        assert u.recv(1) == b"!"
    for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", None): socket.getaddrinfo(host, 80)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5): pass
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s")), server.listen(), client.connect(str(tmp_path / "s"))


def test_the_notebooks_use_no_network(tmp_path):
    cells = [dict(cell_type="code", id=str(n), metadata={}, execution_count=None, outputs=[], source=[line]) for n, line in enumerate(("print('begun')", "import socket; socket.gethostbyname('example.org')"))]
    (tmp_path / "1.ipynb").write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    done = subprocess.run([sys.executable, ROOT / "tools/offline.py", "--path", tmp_path / "1.ipynb"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "example.org: the tests use no network" in done.stderr and "While Executing Cell #2" in done.stderr, done.stderr
    assert "tools/offline.py --n_workers" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_notebooks_are_committed_executed_and_clean(file):
    cells = [c for c in json.loads(file.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    outputs = [o for c in cells for o in c["outputs"]]
    assert outputs, "not executed"
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", {}) for o in outputs) or "](images" in file.read_text(encoding="utf-8"), "no picture"
    text = re.sub(r"[\w+/]{100,}=*", "", json.dumps(outputs)) # without pictures, whose letters may spell anything
    assert not re.search(r"/(root|home|tmp|work|Users)/", text), "a machine's path"
    assert file.stat().st_size < 500_000
