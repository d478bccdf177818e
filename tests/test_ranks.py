"""Several processes that train together, as a launcher starts them."""
import json
import os
import re
import signal
import socket
import subprocess
import time

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from conftest import BIN, TINY, run

from cmlfa.config import parse_args
from cmlfa.gather import on_ranks, rank
from cmlfa.support import UserError
from cmlfa.train import Log, train

SHORT = [*TINY, *"--cpu --dataset_name CUHK-PEDES --num_epoch 2 --lr 1e-3 --loss_names sdm+id+itc --prototypes 0 --log_period 4".split()] # nothing in it throws dice
ALONE = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | dict(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
LAUNCH = [*"--standalone --nproc_per_node 2 --no_python".split(), BIN / "cmlfa_train"] # found without the environment being activated


def history(work, name):
    "What a run wrote down: its steps, its evaluations."
    rows = [json.loads(line) for line in (work / "logs" / name / "history.jsonl").read_text().splitlines()]
    return [r for r in rows if "loss" in r], [r for r in rows if "t2i" in r]


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    "The same training by one process, by two with half of the batch each, in pieces of three pairs, and by two that share out the weights."
    work = tmp_path_factory.mktemp("ranks")
    one = run("cmlfa_train", *SHORT, "--root_dir", data, "--name", "one", "--batch_size", 16, cwd=work, check=True)
    two = run("torchrun", *LAUNCH, *SHORT, "--root_dir", data, "--name", "two", "--batch_size", 8, "--cache_chunk", 3, cwd=work, check=True, env=ALONE)
    run("torchrun", *LAUNCH, *SHORT, "--root_dir", data, "--name", "shared", "--batch_size", 8, "--fsdp", "--num_epoch", 1, cwd=work, check=True, env=ALONE)
    return work, one, two


@pytest.mark.parametrize("other", ["two", "shared"])
def test_two_processes_with_half_the_batch_train_as_one(other, pair):
    work, *_ = pair
    (one, tested), (two, tested_by_two) = history(work, "one"), history(work, other)
    assert len(one) == 24 and len(two) == (24 if other == "two" else 12)
    for a, b in zip(one[:8], two): # after some steps rounding has grown
        for name in ("itc", "sdm", "id", "loss", "norm"): assert abs(a[name] - b[name]) < 1e-4 * abs(a[name]), (a, b)
    for a, b in zip(tested, tested_by_two): assert abs(a["t2i"]["mAP"] - b["t2i"]["mAP"]) < 3, (a, b)


def test_one_process_writes_for_all(pair):
    work, one, two = pair
    names = lambda run: {f.relative_to(work / "logs" / run).parts[0] for f in (work / "logs" / run).rglob("*")}
    assert names("one") == names("two")
    assert two.stdout.count("2 processes train together, 16 pairs a step") == 1 and two.stdout.count("epoch 2/2") == 1
    assert len(list((work / "logs/two/tensorboard").iterdir())) == 1
    report = json.loads((work / "logs/two/metrics.json").read_text())
    assert (report["queries"], report["gallery"]) == tuple(json.loads((work / "logs/one/metrics.json").read_text())[k] for k in ("queries", "gallery"))


def test_one_process_goes_on_where_two_had_shared_out_the_weights(pair, data):
    work, *_ = pair
    more = run("cmlfa_train", *SHORT, "--root_dir", data, "--name", "shared", "--batch_size", 8, "--resume", cwd=work, check=True)
    assert "at epoch 1, batch 0, step 12" in more.stdout and "epoch 2/2" in more.stdout, more.stdout
    assert [r["step"] for r in history(work, "shared")[0]] == list(range(12 + 24)) # 12 steps an epoch by two, 24 by one
    events = EventAccumulator(str(work / "logs/shared/tensorboard")).Reload().Scalars("loss/loss")
    assert [e.step for e in events] == list(range(4, 37, 4)), "the curves go on where they were"


def test_a_stop_of_all_processes_is_said_once_and_kept(data, tmp_path):
    "As a scheduler does it, to the launcher and everything below; here Accelerate's launcher, and weights that are shared out."
    with socket.create_server(("127.0.0.1", 0)) as s: port = s.getsockname()[1] # older launchers take 0 literally, and wait for ever
    line = [BIN / "accelerate", *f"launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port {port} --mixed_precision no --dynamo_backend no --no_python".split(), BIN / "cmlfa_train", *SHORT]
    line += ["--root_dir", data, "--name", "run", *"--batch_size 8 --fsdp --num_epoch 50 --log_period 1 --checkpoint_steps 0".split()]
    p = subprocess.Popen([*map(str, line)], cwd=tmp_path, env=ALONE, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    record, limit = tmp_path / "logs/run/history.jsonl", time.time() + 300
    while not (record.exists() and len(record.read_text().splitlines()) > 4) and p.poll() is None and time.time() < limit: time.sleep(.05)
    os.killpg(p.pid, signal.SIGTERM)
    said, _ = p.communicate(timeout=300)
    kept = re.findall(r"cmlfa_train: stopped by SIGTERM. The run is kept up to step (\d+) in logs/run/last.safetensors", said)
    assert len(kept) == 1 and said.count("cmlfa_train: ") == 1 and int(kept[0]) == len(history(tmp_path, "run")[0]) > 3, said


def test_a_helper_of_one_process_that_is_killed_in_a_step_stops_all_after_the_same_one(data, tmp_path):
    cfg = parse_args([str(a) for a in (*SHORT, "--root_dir", data, "--output_dir", tmp_path / "logs", "--name", "run", *"--batch_size 8 --num_workers 1 --log_period 1 --checkpoint_steps 0".split())])
    def kill(self, t):
        if rank() == 1 and t.step == 2: psutil.Process().children()[0].kill(); time.sleep(.5) # its death is known while the step is under way
    def trains():
        os.cpu_count, Log.after_loss = lambda: 16, kill # a small machine has no helpers
        try: train(cfg, progress=False)
        except UserError as e: return str(e)
    first, second = on_ranks(2, trains)
    kept = re.fullmatch(r"a process that loads images ended \(DataLoader worker \(pid.*\) .*\), most often .* The run is kept up to step (\d+) in .*last.safetensors; go on with: .*", first)
    assert first == second and kept and int(kept[1]) == len(history(tmp_path, "run")[0]) >= 3, (first, second)


def test_a_mistake_is_said_by_the_first_process_alone(tmp_path):
    wrong = run("torchrun", *LAUNCH, *SHORT, "--root_dir", "nowhere", cwd=tmp_path, env=ALONE)
    assert wrong.returncode and wrong.stderr.count("cmlfa_train: root_dir: there is no folder nowhere/CUHK-PEDES") == 1 and wrong.stderr.count("cmlfa_train: ") == 1, wrong.stderr
