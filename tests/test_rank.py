"""The testing command and the ranking benchmark as processes."""
import json

import pytest
import torch
from conftest import run

from cmlfa.bench_rank import start
from cmlfa.clip import ARCHS
from cmlfa.config import Config, save_config
from cmlfa.model import CMLFA


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    "Two untrained runs that differ in their seed, and one that was chosen on test, with another classifier."
    root = tmp_path_factory.mktemp("runs")
    for name, seed, identities, chosen in (("seed1", 1, 24, "val"), ("seed2", 2, 24, "val"), ("other", 1, 7, "test")):
        cfg = Config(name=name, root_dir=str(data), seed=seed, cpu=True, lr=1e-3 if name == "other" else 1e-5)
        torch.manual_seed(seed)
        model = CMLFA(ARCHS["tiny"], identities=identities, losses="itc+id")
        (root / name).mkdir()
        save_config(cfg, root / name / "configs.yaml")
        model.save(root / name / "best.safetensors", epoch=1, selected_on=chosen, config={k: list(v) if isinstance(v, tuple) else v for k, v in vars(cfg).items()})
    return root


def test_several_models_in_one_table(runs):
    done = run("cmlfa_test", "seed1", "seed2", "other", cwd=runs, check=True)
    rows = [l for l in done.stdout.splitlines() if l.startswith(("| seed", "| other"))]
    assert len(rows) == 4 and "2 seeds" in rows[0] and "±" in rows[0] and " to " in rows[1]
    assert "other: the epoch was chosen on the split that is searched here" in done.stdout
    result = json.loads((runs / "results/metrics.json").read_text())
    assert [r["run"] for r in result["reports"]] == ["seed1", "seed2", "other"] and set(result["models"]) == {"seed", "other"}
    a, b = (r["t2i"]["R1"] for r in result["reports"][:2])
    assert result["models"]["seed"][0]["t2i"]["R1"] == pytest.approx((a + b) / 2)
    assert not list((runs / "results").glob("*.part")) and not (runs / "seed1/metrics.json").exists()


def test_the_same_numbers_alone_and_among_others(runs):
    run("cmlfa_test", "--config_file", "other/configs.yaml", cwd=runs, check=True)
    alone = json.loads((runs / "other/metrics.json").read_text())
    run("cmlfa_test", "seed1", "other", "--out", "both", cwd=runs, check=True)
    among = json.loads((runs / "both/other-CUHK-PEDES-test/metrics.json").read_text())
    assert (alone["t2i"], alone["i2t"]) == (among["t2i"], among["i2t"]) and alone["selected_on"] == "test"


FAULTS = {
    "no model": ([], "give the models to test"),
    "both ways": (["seed1", "--config_file", "seed1/configs.yaml"], "give the models to test"),
    "unknown model": (["gone"], "gone: there is no such folder"),
    "unknown data set": (["seed1", "--dataset_name", "Market"], "'Market' is unknown"),
    "data that is not there": (["seed1", "--root_dir", "gone"], "there is no folder"),
    "results on a file": (["seed1", "--out", "seed1/configs.yaml"], "cannot be read or written"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_gets_one_sentence(fault, runs):
    flags, expected = FAULTS[fault]
    done = run("cmlfa_test", *flags, cwd=runs)
    message = [l for l in done.stderr.splitlines() if l.startswith("cmlfa_test: ")]
    assert done.returncode == 2 and len(message) == 1 and expected in message[0] and "Traceback" not in done.stderr, done.stderr


def test_both_ways_of_ranking_agree_and_ours_needs_less():
    ours, plain = (start(way, 4000, 4000) for way in ("ours", "plain"))
    assert ours["measures"] == pytest.approx(plain["measures"], abs=1e-3)
    assert ours["mb"] < plain["mb"] - 200
