"""One of two processes is killed, or hangs: the other one ends and says so, and the work goes on from where it was. First the second process is lost, then the first."""
import os
import re
import signal
import time
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import soak
import test_resume
from conftest import PUBLISHED, TINY

from cmlfa.index import index

OLD = tuple(map(int, version("torch").split(".")[:2])) < (2, 14) # 2.8 was seen to
WAYS = pytest.mark.parametrize("number, words", [(signal.SIGKILL, "has ended or cannot be reached"), pytest.param(signal.SIGSTOP, "has not answered in time", marks=pytest.mark.skipif(OLD, reason="gloo of older PyTorch keeps the half hour that it began with, which nobody waits for here"))], ids=["killed", "hung"])


def member(rank, place):
    "Be one of two processes, as a launcher would start them; they meet at a file, since a port that is free now may be taken a moment later."
    import torch

    import cmlfa.gather
    cmlfa.gather.time = SimpleNamespace(sleep=lambda seconds: time.sleep(1)) # before another than the first speaks
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1", GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group = partial(torch.distributed.init_process_group, init_method=f"file://{place}", rank=rank, world_size=2)


def hurry():
    "From here on wait for the other one a moment, and not half an hour: it will never come."
    import torch
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=2))


def train_as(rank, place, argv, folder, at):
    member(rank, place)
    soak.train(argv, folder, at)


def index_as(rank, place, argv, folder, at):
    "cmlfa_index; something happens to this process when it has written so many batches."
    import cmlfa.index
    from cmlfa.store import Store
    member(rank, place)
    put, calls = Store.put, []
    def counting(*args):
        put(*args)
        calls.append(1)
        if len(calls) == at[0]: at[1]()
    Store.put = counting
    cmlfa.index.main(argv)


def lose(rank, number, job, args, at, work):
    "Two processes of which one is lost; what the other one says."
    work.mkdir()
    for n in "01": (work / n).mkdir()
    acts = [partial(signal.raise_signal, number) if n == rank else hurry for n in (0, 1)]
    there = [soak.start(work / str(n), job, n, work / "meet", args, work / str(n), (at, act)) for n, act in enumerate(acts)]
    there[1 - rank].join(600)
    said = (work / f"{1 - rank}/out.txt").read_text()
    assert there[rank].exitcode == (-number if number == signal.SIGKILL else None), (work / f"{rank}/out.txt").read_text()
    soak.kill(there[rank])
    assert there[1 - rank].exitcode == 2 and said.count("another process of this") == 1 and "Traceback" not in said, said
    return said


@WAYS
def test_a_process_that_is_lost_ends_the_training_and_the_run_goes_on(number, words, data, tmp_path):
    line = [*PUBLISHED.format(data).split(), *TINY, *test_resume.FLAGS, "--batch_size", "8", "--num_epoch", "1", "--output_dir", str(tmp_path / "logs"), "--resume"]
    for rank, step, kept in ((1, 6, 7), (0, 11, 10)): # the first process, if it is left, finishes its step and saves once more
        said = lose(rank, number, train_as, line, step, tmp_path / f"without {rank}")
        assert f"another process of this training {words}" in said and ("process 1: another" in said) == (rank == 0), said
        assert f"The run is kept up to step {kept} in {tmp_path}/logs/cmlfa/last.safetensors; go on with: torchrun" in said, said
    last = soak.start(tmp_path, soak.train, line, tmp_path)
    last.join(600)
    said = (tmp_path / "out.txt").read_text()
    assert last.exitcode == 0 and re.search(r"going on from last.safetensors at epoch 0, batch \d+, step 10", said), said
    steps = [r["step"] for r in test_resume.history(tmp_path) if "loss" in r]
    assert len(steps) > 10 and steps == list(range(len(steps)))


@WAYS
def test_a_process_that_is_lost_ends_the_indexing_and_the_next_one_goes_on(number, words, data, tmp_path):
    photos, store, model = data / "CUHK-PEDES/imgs", tmp_path / "store", soak.tiny_model(tmp_path / "model")
    line = [*map(str, (photos, "--store", store, "--model", model, "--batch_size", 4, "--num_workers", 0, "--cpu"))]
    for rank in (1, 0):
        said = lose(rank, number, index_as, line, 3, tmp_path / f"without {rank}")
        assert f"another process of this indexing {words}" in said and "What was embedded is kept, and the same command goes on" in said and ("process 1: another" in said) == (rank == 0), said
    report = index(photos, store, model)
    assert report.unchanged == (16 + 3) * 4 + 58 + 4, report # the first one up to the next meeting, the second one up to its end; then all of the second one's half, and a batch of the first one, which had put two parts together before
    assert report.new == 192 - report.unchanged
