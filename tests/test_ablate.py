"""The study of the parts: what an interruption or a second process at work may not change."""
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cmlfa.loop import Callback
from cmlfa.synth import Size

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import ablate


@pytest.fixture
def here(tmp_path, monkeypatch):
    "The study in a folder of its own, with a handful of people."
    for name, place in dict(OUT="out.jsonl", COST="cost.json", DATA="data", RUNS="runs").items(): monkeypatch.setattr(ablate, name, tmp_path / place)
    monkeypatch.setattr(ablate, "SETTINGS", ablate.SETTINGS | dict(root_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "runs"), num_epoch=2))
    monkeypatch.setattr(ablate, "PEOPLE", Size(24, 6, 6, 4, 96, 48))
    return tmp_path


def test_a_result_stands_once_and_whole_whoever_writes_it(here):
    results = [dict(row="itc", seed=seed, scale=ablate.SCALE, epochs="long " * 5000) for seed in range(6)]
    with ThreadPoolExecutor(8) as pool: list(pool.map(ablate.record, results * 3))
    assert sorted(r["seed"] for r in map(json.loads, ablate.OUT.read_text().splitlines())) == list(range(6))


def test_what_stands_is_not_trained_again_and_what_another_trains_is_left_to_it(here, monkeypatch):
    trained = []
    monkeypatch.setattr(ablate, "data", lambda: None)
    monkeypatch.setattr(ablate, "measure", lambda row, seed, changes: trained.append((row, seed)) or (ablate.RUNS / ablate.run_name(row, seed)).mkdir() or
        dict(row=row, seed=seed, scale=ablate.SCALE, test=dict(t2i=dict(R1=1.)), epochs=[dict(cpu=1., val=dict(t2i=dict(R1=1.)))]))
    with ablate.holding(ablate.RUNS / "cmlfa-1.lock", wait=False): ablate.study([("itc", 1), ("cmlfa", 1)])
    ablate.study([("itc", 1), ("cmlfa", 1)])
    assert trained == [("itc", 1), ("cmlfa", 1)]


class StopAt(Callback):
    "What Ctrl-C or a shutdown does, at one step."
    def after_step(self, t):
        if t.step == 8: os.kill(os.getpid(), signal.SIGTERM)


def test_a_training_that_was_stopped_ends_as_the_one_that_was_not(here, monkeypatch):
    ablate.data()
    whole = ablate.measure("lfa", 1, ablate.ROWS["lfa"])
    monkeypatch.setattr(ablate, "RUNS", here / "again")
    monkeypatch.setattr(ablate, "SETTINGS", ablate.SETTINGS | dict(output_dir=str(here / "again")))
    stopped = ablate.trainer_of("lfa", 1, ablate.ROWS["lfa"])
    stopped.callbacks.append(StopAt())
    with pytest.raises(KeyboardInterrupt): stopped.fit()
    assert stopped.step == 8 and 0 < stopped.done < len(stopped.loader)
    again = ablate.measure("lfa", 1, ablate.ROWS["lfa"])
    assert len(again["epochs"]) == 2 and all(e["cpu"] > 0 for e in again["epochs"])
    for key in ("test", "epoch", "pairs", "parameters"): assert again[key] == whole[key]
    assert [(e["val"], e["test"]) for e in again["epochs"]] == [(e["val"], e["test"]) for e in whole["epochs"]]
