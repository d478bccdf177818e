"""Notebook 18 on data sets that somebody has: its own cells, given two of them, of which one is broken."""
import json
import shutil
from pathlib import Path

from conftest import TINY, run

NBS = Path(__file__).resolve().parent.parent / "nbs"
PARTS = "import contextlib", "found = [", "def commands(", "def run(", "def runs_of(", "def reproduce(", "def big_table(" # cells that a run with data sets consists of
SMALL = " " + " ".join([*TINY, "--lfa_layers 2 --cmt_depth 1 --lr 1e-3 --lr_factor 1 --num_epoch 1 --warmup_epochs 0.1 --num_workers 0"])


def cells():
    code = ["".join(c["source"]) for c in json.loads((NBS / "18_reproduce.ipynb").read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    return {p: next(c for c in code if p in c) for p in PARTS}


def test_a_broken_data_set_stops_itself_alone_and_runs_are_tested(data, tmp_path, monkeypatch, capsys):
    mine, runs = tmp_path / "my data", tmp_path / "runs"
    run("cmlfa_synth", mine, "--size", "small", "--layout", "RSTPReid", "--workers", "1", cwd=tmp_path, check=True)
    shutil.copytree(data / "CUHK-PEDES", mine / "CUHK-PEDES")
    for file in mine.glob("*/attributes.json"): file.unlink() # now they look like photographs
    next((mine / "CUHK-PEDES/imgs").rglob("*.jpg")).write_bytes(b"no image")
    monkeypatch.chdir(NBS)
    for k, v in dict(CMLFA_DATA=mine, CMLFA_LOGS=runs, CMLFA_TRAIN=1).items(): monkeypatch.setenv(k, str(v))
    names, code = {}, cells()
    for part in PARTS:
        exec(code[part].split("\ntried = ")[0], names) # what was tried on drawn people isn't needed
        if part == "def commands(": names["commands"] = lambda *a, given=names["commands"], **k: given(*a, SMALL, **k)
    said = capsys.readouterr().out
    assert names["found"] == ["CUHK-PEDES", "RSTPReid"] and "ICFG-PEDES: skipped" in said
    assert "cmlfa_check: nowhere: there is no such folder" in said
    assert "CUHK-PEDES: left here, since cmlfa_check ended with status 1" in said and "images that cannot be read: 1" in said, said
    assert (runs / "cmlfa-rstp/best.safetensors").is_file() and not (tmp_path / "logs").exists()
    assert "written to LOGS/cmlfa-rstp" in said and str(tmp_path) not in said, said
    row = names["big_table"](names["mine"]).data.splitlines()[-1]
    assert row.startswith("| **yours** |  |  | ") and "(epoch chosen on val, 1 seed)" in row, row
    (runs / "cmlfa-rstp/metrics.json").unlink()
    monkeypatch.delenv("CMLFA_TRAIN")
    exec(code["def reproduce("], names) # nothing is trained; the run that is there is tested
    said = capsys.readouterr().out
    assert "cmlfa_train" not in said and "text to image" in said and (runs / "cmlfa-rstp/metrics.json").is_file(), said
    shutil.rmtree(runs)
    exec(code["def reproduce("], names)
    said = capsys.readouterr().out
    assert "next:\ncmlfa_pack 'DIR'" in said and "--output_dir LOGS" in said and str(tmp_path) not in said and not names["mine"], said
    names["work"].cleanup()
