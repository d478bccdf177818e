"""The commands as a user meets them: as processes, with right and with wrong input."""
import json
import re
import time

import pytest
from conftest import PUBLISHED, TINY, run
from forked import Command


@pytest.fixture(scope="module")
def published(data, tmp_path_factory):
    "The published command line, word for word, with the additions that make it small enough for a test."
    work = tmp_path_factory.mktemp("published")
    done = run("cmlfa_train", *PUBLISHED.format(data).split(), *TINY, "--num_epoch", "3", "--lr", "1e-3", cwd=work, check=True)
    return work, done


def test_published_command_line_trains(published):
    work, done = published
    folder = work / "logs/cmlfa"
    for name in ("configs.yaml", "metrics.json", "ranking.png", "log.txt", "last.safetensors", "best.safetensors", "history.jsonl", "report.html", "tensorboard"):
        assert (folder / name).exists(), name
    assert not list(folder.glob("*.part"))
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr


def test_testing_agrees_with_the_training_log(published):
    work, trained = published
    folder = work / "logs/cmlfa"
    before = json.loads((folder / "metrics.json").read_text())
    tested = run("cmlfa_test", "--config_file", folder / "configs.yaml", cwd=work, check=True)
    line = next(l for l in tested.stdout.splitlines() if l.startswith("text to image"))
    assert line in trained.stdout and line in (folder / "log.txt").read_text()
    after = json.loads((folder / "metrics.json").read_text())
    assert (after["t2i"], after["i2t"], after["selected_on"]) == (before["t2i"], before["i2t"], "val")


def test_the_log_names_every_loss(published):
    assert re.search(r"epoch 3/3: .*itc [\d.]+.*sdm [\d.]+.*id [\d.]+.*mlm [\d.]+", published[1].stdout)


def test_a_finished_run_is_not_overwritten_and_can_be_continued(published, data):
    work, _ = published
    line = [*PUBLISHED.format(data).split(), *TINY, "--lr", "1e-3"]
    again = run("cmlfa_train", *line, "--num_epoch", "4", cwd=work)
    assert again.returncode == 2 and "holds a run already" in again.stderr
    more = run("cmlfa_train", *line, "--num_epoch", "4", "--resume", cwd=work, check=True)
    assert "going on from last.safetensors at epoch 3" in more.stdout and "epoch 4/4" in more.stdout and "epoch 3/4" not in more.stdout


def start(work, data, *more):
    "A training that takes a while, and a wait until its first epoch is on disk."
    p = Command("cmlfa_train", *PUBLISHED.format(data).split(), *TINY, *more, cwd=work)
    last = work / "logs/cmlfa/last.safetensors"
    deadline = time.monotonic() + 300
    while not last.exists() and p.poll() is None and time.monotonic() < deadline: time.sleep(0.1)
    if not last.exists(): p.kill() # or its message would wait for 150 epochs
    assert last.exists(), p.communicate()
    return p


def test_interrupt_says_how_to_go_on(data, tmp_path):
    p = start(tmp_path, data)
    _, err = p.interrupt()
    assert p.returncode == 130 and "--resume" in err and "Traceback" not in err


def test_a_killed_run_goes_on(data, tmp_path):
    p = start(tmp_path, data)
    p.kill()
    p.communicate()
    done = run("cmlfa_train", *PUBLISHED.format(data).split(), *TINY, "--num_epoch", "4", "--resume", cwd=tmp_path, check=True)
    assert "going on from last.safetensors at epoch" in done.stdout and "text to image" in done.stdout


def edit(root, change):
    "Change the annotations."
    file = root / "CUHK-PEDES/reid_raw.json"
    entries = json.loads(file.read_text())
    change(entries)
    file.write_text(json.dumps(entries))


def first_image(root):
    "Path of an image that training needs."
    entries = json.loads((root / "CUHK-PEDES/reid_raw.json").read_text())
    return root / "CUHK-PEDES/imgs" / next(e for e in entries if e["split"] == "train")["file_path"]


FAULTS = {
    "no root": (lambda d: d.rename(d.with_name("elsewhere")), [], "there is no folder"),
    "no annotations": (lambda d: (d / "CUHK-PEDES/reid_raw.json").unlink(), [], "reid_raw.json is missing"),
    "malformed annotations": (lambda d: (d / "CUHK-PEDES/reid_raw.json").write_text("[{"), [], "is no valid JSON"),
    "unknown split": (lambda d: edit(d, lambda e: e[3].update(split="valid")), [], "entry 3"),
    "empty caption": (lambda d: edit(d, lambda e: e[5].update(captions=[" "])), [], "entry 5"),
    "escaping path": (lambda d: edit(d, lambda e: e[7].update(file_path="../../secret.jpg")), [], "entry 7"),
    "missing image": (lambda d: first_image(d).unlink(), [], "missing"),
    "broken image": (lambda d: [p.write_bytes(p.read_bytes()[:200]) for p in (d / "CUHK-PEDES/imgs").rglob("*.jpg")], [], "cannot be read"),
    "long caption": (lambda d: edit(d, lambda e: e[0].update(captions=["red coat " * 90])), ["--long_captions", "refuse"], "tokens"),
    "unknown loss": (lambda d: None, ["--loss_names", "itc+hope"], "'hope' is no loss"),
    "impossible size": (lambda d: None, ["--img_size", "97", "48"], "img_size"),
    "no identities": (lambda d: edit(d, lambda e: [x.update(split="test") for x in e]), [], "0 identities"),
    "large batch": (lambda d: None, ["--batch_size", "4096"], "batch_size"),
    "no effect": (lambda d: None, ["--momentum", "0.5"], "momentum has no effect"),
    "not finite": (lambda d: None, ["--lr", "1e20", "--log_period", "1"], "not finite"),
    "wrong checkpoint": (lambda d: None, ["--resume", "--resume_ckpt_file", "nothing.safetensors"], "nothing.safetensors"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_gets_one_sentence(fault, copy, tmp_path):
    damage, flags, expected = FAULTS[fault]
    damage(copy)
    done = run("cmlfa_train", *PUBLISHED.format(copy).split(), *TINY, "--num_epoch", "2", *flags, cwd=tmp_path)
    message = [l for l in done.stderr.splitlines() if l.startswith("cmlfa_train: ")]
    assert done.returncode == 2 and len(message) == 1 and expected in message[0], done.stderr
    assert "Traceback" not in done.stderr
    if fault not in ("broken image", "not finite"): assert not (tmp_path / "logs").exists(), "something half-written"


def test_weights_that_are_not_there(data, tmp_path):
    done = run("cmlfa_train", *PUBLISHED.format(data).split(), "--pretrain_choice", "gone.pt", cwd=tmp_path)
    assert done.returncode == 2 and "gone.pt: there is no such file of weights" in done.stderr and not (tmp_path / "logs").exists(), done.stderr


def test_another_configuration_is_not_resumed(published, data):
    work, _ = published
    done = run("cmlfa_train", *PUBLISHED.format(data).split(), *TINY, "--lr", "1e-3", "--num_epoch", "9", "--resume", "--batch_size", "32", cwd=work)
    assert done.returncode == 2 and "was trained with batch_size 64" in done.stderr


def test_an_output_folder_that_cannot_be_made(data, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("cmlfa_train", *PUBLISHED.format(data).split(), *TINY, "--output_dir", "file", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
