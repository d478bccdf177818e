"""Command lines that nobody meant, terminals that have only ASCII, streams that were closed: one sentence, or the work is done and what is written is UTF-8."""
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked import ENTRIES
from PIL import Image

from cmlfa.support import Parser

ROOT = Path(__file__).resolve().parent.parent.parent

COMMANDS = """
import os, sys
from unittest import mock
from cmlfa import export, index, pack, prep, protocol, search, train

def call(command, *args):
    with mock.patch.object(sys, "argv", ["cmlfa_x", *args]):
        try: command.main()
        except SystemExit as e: return e.code
    return 0

words, done = sys.argv[1], {}
assert (sys.getfilesystemencoding(), sys.stdout.encoding, words) == ("ascii", "ascii", "caf\\udcc3\\udca9 \\udcf0\\udc9f\\udc98\\udc80")
def do(command, *args): done[command.__name__.split(".")[-1]] = call(command, *args)
do(prep, "data", "--workers", "1", "--html", "check.html", "--json", "check.json")
do(pack, "data", "--workers", "1", "--img_size", "48", "24")
do(train, *"--name t --root_dir data --pretrain_choice none --backbone tiny --img_size 48 24 --stride_size 12 --num_epoch 1 --batch_size 2 --num_workers 0 --prototypes 2 --lfa_layers 1 --loss_names sdm".split())
do(protocol, "logs/t", "--num_workers", "0")
do(export, "logs/t", "shared", "--to", "folder", "--data", words)
do(index, "photos", "--model", "shared", "--num_workers", "0", "--metadata", "facts.csv")
do(search, words, "--not", words, "--where", f"{words.split()[0]}={words}", "-k", "1", "--html", "found.html", "--png", "found.png")
print(done)
sys.stdout.flush()
if not (child := os.fork()): # a process that was started without streams
    for fd in (0, 1, 2): os.close(fd)
    sys.stdin = sys.stdout = sys.stderr = None
    os._exit(10 * call(prep, "data", "--workers", "1", "--json", "closed.json") + call(prep, "nowhere"))
print("closed", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture
def place(tmp_path):
    "Eight tiny images of four people, described with letters that ASCII lacks; two photographs and what is known of them."
    (tmp_path / "data/CUHK-PEDES/imgs").mkdir(parents=True), (tmp_path / "photos").mkdir()
    entries = []
    for i in range(8):
        Image.new("RGB", (24, 48), (30 * i, 99, 200)).save(tmp_path / f"data/CUHK-PEDES/imgs/{i}.jpg")
        entries.append(dict(split=("train", "train", "val", "test")[i // 2], captions=[f"café 😀, number {i}"], id=1 + i // 2, file_path=f"{i}.jpg"))
    (tmp_path / "data/CUHK-PEDES/reid_raw.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    for name in ("a.jpg", "é 😀.jpg"): Image.new("RGB", (24, 48), "red").save(tmp_path / "photos" / name)
    (tmp_path / "facts.csv").write_text("path,café\na.jpg,café 😀\n", encoding="utf-8")
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files have one coding")
def test_a_terminal_that_has_only_ascii_and_streams_that_were_closed(place):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))} | dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii", PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-c", COMMANDS, "café 😀"], cwd=place, env=env, capture_output=True, text=True, encoding="ascii", timeout=400)
    assert "Traceback" not in done.stderr and done.stdout.endswith("closed 2\n"), done.stderr
    assert "{'prep': 0, 'pack': 0, 'train': 0, 'protocol': 0, 'export': 0, 'index': 0, 'search': 0}" in done.stdout, done.stdout + done.stderr
    assert "its name is no UTF-8, as names are read as ascii here, and as UTF-8 with PYTHONUTF8=1; rename it" in done.stdout
    assert (place / "closed.json").exists()
    written = [f for f in place.rglob("*") if f.suffix in (".html", ".json", ".jsonl", ".csv", ".txt", ".md", ".yaml")]
    holding = {f.name for f in written if re.search("café 😀|caf\\\\u00e9 \\\\ud83d\\\\ude00", f.read_text(encoding="utf-8"))}
    assert {"queries.csv", "README.md", "found.html", "captions.json"} <= holding, holding


class Found(Exception): "Carries a command's parser out of it."


def parser_of(main, monkeypatch):
    "The command line of a command."
    def found(self, *args): raise Found(self)
    with monkeypatch.context() as m, pytest.raises(Found) as e:
        m.setattr(Parser, "parse_args", found)
        main([])
    return e.value.args[0]


@pytest.mark.parametrize("name", ENTRIES)
def test_no_option_of_any_command_takes_what_nobody_means(name, monkeypatch, tmp_path, capsys):
    main = getattr(importlib.import_module(ENTRIES[name][0]), ENTRIES[name][1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    parser, tried = parser_of(main, monkeypatch), 0
    options = [a for a in parser._actions if a.option_strings and a.nargs in (None, 2)]
    needed = ["x" for a in parser._actions if not a.option_strings and a.nargs is None]
    assert options
    for a in options:
        bad = ["nan", "1e999", "-inf", "9" * 5000, "\udcff", "1\n2", ""] + ["9" * 30] * (a.type is int) if a.type in (int, float) else [] if a.type == "sentence" or a.type is str else [""] + (["x" * 5000, "\udcff"] if a.choices else [])
        for value in bad:
            given = [f"{a.option_strings[0]}={value}"] if a.nargs is None else [a.option_strings[0], value, "1"]
            with pytest.raises(SystemExit) as e: main([*needed, *given])
            out, err = capsys.readouterr()
            assert (e.value.code, out) == (2, "") and err.count("\n") == 1 and len(err) < 800 and err.startswith(f"{name}: ") and a.option_strings[-1] in err and f"see {name} --help" in err, (given, err)
            tried += 1
    for given in (["--nope"], ["--nope=1"], [options[0].option_strings[0]], [options[0].option_strings[0][:-1] + "=1"] if len(options[0].option_strings[0]) > 2 else ["--nope"]):
        with pytest.raises(SystemExit) as e: main([*needed, *given])
        assert e.value.code == 2 and capsys.readouterr().err.count("\n") == 1, given
    assert tried and not list(tmp_path.iterdir())
