"""A training that is killed, stopped, or runs out of disk loses nothing that it had."""
import faulthandler
import multiprocessing
import os
import random
import re
import resource
import shlex
import signal
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import faiss
import numpy as np
import psutil
import pytest
import torch
from conftest import FULL, PUBLISHED, TINY, disk, remount, run

from cmlfa.batches import side_by_side
from cmlfa.measures import count_ahead
from cmlfa.nearest import scan_one
from cmlfa.watch import History, TensorBoard

FLAGS = "--num_epoch 4 --batch_size 16 --lr 1e-3 --lfa_layers 1 --cmt_depth 1 --log_period 1 --checkpoint_steps 2 --test_batch_size 64 --cpu".split()
processes = multiprocessing.get_context("forkserver") # imports once, then forks: a start costs a second and not six
processes.set_forkserver_preload(["cmlfa.train"])


def interfere(when, act):
    "Let training do something to itself at a step, or before it measures: what comes from outside comes sooner or later, as busy as the machine is."
    import cmlfa.train as t
    if when == "measuring":
        real = t.embed_split
        t.embed_split = lambda *args: act() or real(*args)
    else: t.Log.after_loss = lambda self, trainer: act() if trainer.step == when else None


def kill_helper():
    "End a process that loads images."
    psutil.Process().children()[0].kill()


def train(argv, folder, at=None):
    "cmlfa_train, in a process of its own, with towers so small that a step takes some hundredths of a second; `at`: when, and what then happens to it."
    out = os.open(folder / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd in (1, 2): os.dup2(out, fd)
    os.chdir(folder)
    os.setpgid(0, 0) # a process group of its own, as a shell or a scheduler gives it
    multiprocessing.set_start_method(None, force=True) # the system's own, as for everybody; the server would hand on its way
    if "--num_workers" in argv: os.cpu_count = lambda: 8 # else there are none on a small machine
    from dataclasses import replace

    import torch

    from cmlfa.clip import ARCHS
    from cmlfa.train import main
    torch.set_num_threads(1)
    ARCHS["tiny"] = replace(ARCHS["tiny"], width=32, heads=2, layers=2, dim=32, text_width=32, text_heads=2)
    sys.argv = ["cmlfa_train"]
    if at: interfere(*at)
    main(argv)


def start(argv, folder, at=None):
    folder.mkdir(exist_ok=True)
    p = processes.Process(target=train, args=(list(argv), folder, at))
    p.start()
    return p


def end(p, folder):
    "Wait, and return the exit status and what was said."
    p.join(1000)
    if late := p.exitcode is None: p.kill(); p.join()
    assert not late, (folder / "out.txt").read_text()
    return p.exitcode, (folder / "out.txt").read_text()


def history(folder):
    "Whole lines of the record."
    return History(folder / "logs/cmlfa/history.jsonl").rows()


def steps(folder): return sum("loss" in r for r in history(folder))


def wait_for(folder, wanted, p):
    "Until so many steps are on record."
    limit = time.time() + 300
    while steps(folder) < wanted and p.is_alive() and time.time() < limit: time.sleep(.002)


def weights(folder, name):
    "Every tensor of a checkpoint, as bytes."
    from cmlfa.share import read_checkpoint
    tensors, meta = read_checkpoint(folder / f"logs/cmlfa/{name}.safetensors")
    return {k: v.numpy().tobytes() for k, v in tensors.items()} | {k: meta[k] for k in ("epoch", "done", "step", "best")}


def same(folder, whole):
    "The run is the uninterrupted one, to the last bit."
    assert history(folder) == history(whole)
    for name in ("last", "best"): assert weights(folder, name) == weights(whole, name)
    assert not list((folder / "logs/cmlfa").glob("*.part")) and not (folder / "logs/cmlfa/next.safetensors").exists()


@pytest.fixture(scope="module")
def line(data): return [*PUBLISHED.format(data).split(), *TINY, *FLAGS]


@pytest.fixture(scope="module")
def whole(line, tmp_path_factory):
    "The run that nobody disturbs."
    folder = tmp_path_factory.mktemp("whole")
    code, said = end(start(line, folder), folder)
    assert code == 0, said
    assert [r["step"] for r in history(folder) if "loss" in r] == list(range(4 * 12))
    return folder


def test_killed_at_any_moment_twenty_times(line, whole, tmp_path):
    rng, kills, runs, middles = random.Random(0), 0, 0, set()
    while kills < 20: # should a run come to its end before, another follows
        folder, runs = tmp_path / f"run{runs}", runs + 1
        while True:
            p = start([*line, "--resume"], folder)
            if rng.random() < .2: time.sleep(rng.uniform(0, 1)) # while it starts
            else:
                wait_for(folder, steps(folder) + rng.randrange(4), p)
                time.sleep(rng.uniform(0, .06))
            if not p.is_alive() or kills >= 20: break
            p.kill()
            p.join()
            kills += 1
            middles.add(steps(folder) % 12)
        code, said = end(p, folder)
        assert code == 0, said
        same(folder, whole)
    assert len(middles) > 3, "kills came in the middle of epochs too"


@pytest.mark.parametrize("number, cut, evaluating", [(signal.SIGINT, False, False), (signal.SIGTERM, True, False), (signal.SIGTERM, False, True)], ids=["Ctrl-C", "SIGTERM and a cut-off file", "SIGTERM while it evaluates"])
def test_a_stop_is_saved_and_says_how_to_go_on(number, cut, evaluating, line, whole, tmp_path):
    code, said = end(start(line, tmp_path, ("measuring" if evaluating else 14, partial(signal.raise_signal, number))), tmp_path)
    assert code == 130 and "Traceback" not in said, said
    step, command = re.search(r"stopped by SIG\w+. The run is kept up to step (\d+) in logs/cmlfa/last.safetensors; go on with: (.*)", said).groups()
    assert int(step) == steps(tmp_path) == (12 if evaluating else 15)
    last = tmp_path / "logs/cmlfa/last.safetensors"
    if cut: last.write_bytes(last.read_bytes()[:-1000])
    words = shlex.split(command)
    assert words[0] == "cmlfa_train"
    code, said = end(start(words[1:], tmp_path), tmp_path)
    assert code == 0, said
    assert f"going on from last{'-1' * cut}.safetensors at epoch {0 if evaluating else 1}" in said and ("last.safetensors is cut off or damaged and was passed over" in said) == cut
    same(tmp_path, whole)


def test_a_signal_to_all_processes_of_the_job_is_a_stop_like_any_other(line, whole, tmp_path):
    for wanted in (13, 19, 26): # schedulers end the loading workers as well
        code, said = end(start([*line, "--num_workers", "2", "--checkpoint_steps", "0", "--resume"], tmp_path, (wanted, partial(os.system, "trap '' TERM; kill -TERM 0; sleep .3"))), tmp_path) # 0: its group; by a shell, since workers take it for granted from their parent
        assert code == 130 and "Traceback" not in said, said
        assert int(re.search(r"stopped by SIGTERM. The run is kept up to step (\d+) in", said)[1]) == steps(tmp_path) == wanted + 1, said
    code, said = end(start([*line, "--num_workers", "2", "--resume"], tmp_path), tmp_path)
    assert code == 0, said
    same(tmp_path, whole)


LOCKS = """
import os, signal, sys, threading, traceback
import cmlfa.index, cmlfa.train
os.cpu_count = lambda: 8 # else nobody helps to load on a small machine
take, taken = threading.Condition.__enter__, []
def gap(lock): # take a lock of a loader's queue, and be interrupted before anybody knows
    got = take(lock)
    if threading.get_ident() == threading.main_thread().ident and any(f.name == "put" and "multiprocessing" in f.filename for f in traceback.extract_stack(limit=3)):
        taken.append(lock)
        if len(taken) == 5: signal.raise_signal(signal.SIGINT)
    return got
threading.Condition.__enter__ = gap
{}.main(sys.argv[1:])
"""


@pytest.mark.parametrize("module, words", [("cmlfa.train", "stopped by SIGINT. The run is kept up to step"), ("cmlfa.index", "stopped by Ctrl-C; what was embedded is kept, and the same command goes on")])
def test_ctrl_c_never_comes_in_the_middle_of_a_lock(module, words, data, tmp_path):
    args = ["--root_dir", data, *TINY, *FLAGS] if module == "cmlfa.train" else [data / "CUHK-PEDES/imgs", "--cpu", "--batch_size", "16"]
    done = run("python", "-c", LOCKS.format(module), *args, "--num_workers", "2", cwd=tmp_path)
    assert done.returncode == 130 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def board(folder):
    "TensorBoard's callback, with scalars to write."
    t = SimpleNamespace(folder=folder, step=0, val=SimpleNamespace(paths=[]), cfg=SimpleNamespace(img_size=(8, 8), log_period=1, val_dataset="val"), rows=[dict(step=0, loss=1.)],
                        optimizer=SimpleNamespace(param_groups=[dict(name="new", lr=.1)]), report=dict(t2i=dict.fromkeys(map(str, range(9)), 40.)), batch=None, seen=None)
    callback = TensorBoard()
    callback.before_fit(t)
    def write():
        try: callback.after_read(t); callback.after_epoch(t)
        finally: callback.after_fit(t)
    return write


def scan():
    vectors, coder = np.random.default_rng(0).random((640, 16), np.float32), faiss.ScalarQuantizer(16, faiss.ScalarQuantizer.QT_8bit)
    coder.train(vectors)
    return lambda: scan_one(coder.compute_codes(vectors), coder, vectors[0], 5)


@pytest.mark.parametrize("prepare", [lambda _: lambda: side_by_side(abs, range(40)), lambda _: lambda: count_ahead(torch.ones(400, 9), torch.ones(400, 1)), lambda _: scan(), board], ids=["augmenting", "measuring", "scanning", "TensorBoard"])
@pytest.mark.parametrize("number", [3, 6]) # of the lock
def test_ctrl_c_never_comes_in_the_middle_of_a_lock_that_threads_share(prepare, number, monkeypatch, tmp_path):
    take, taken, before, work = threading.Condition.__enter__, [], (torch.get_num_threads(), faiss.omp_get_max_threads()), prepare(tmp_path)
    def gap(lock): # take a lock, and be interrupted before anybody knows
        got = take(lock)
        if threading.get_ident() == threading.main_thread().ident:
            taken.append(lock)
            if len(taken) == number: signal.raise_signal(signal.SIGINT)
        return got
    faulthandler.dump_traceback_later(100, exit=True) # else nothing would end any more
    torch.set_num_threads(2); faiss.omp_set_num_threads(2)
    try:
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(threading.Condition, "__enter__", gap)
            work()
    finally:
        torch.set_num_threads(before[0]); faiss.omp_set_num_threads(before[1])
        faulthandler.cancel_dump_traceback_later()


def test_a_killed_loading_worker_is_one_sentence_and_nothing_is_lost(line, whole, tmp_path):
    code, said = end(start([*line, "--num_workers", "2", "--checkpoint_steps", "0"], tmp_path, (16, kill_helper)), tmp_path)
    assert code == 2 and "Traceback" not in said, said
    assert re.search(r"cmlfa_train: a process that loads images ended \(DataLoader worker \(pid.*\) .*\), most often for lack of memory; go on with a smaller --num_workers. The run is kept up to step \d+ in", said), said
    assert f"kept up to step {steps(tmp_path)} in" in said, said
    code, said = end(start([*line, "--num_workers", "0", "--resume"], tmp_path), tmp_path)
    assert code == 0, said
    same(tmp_path, whole)


def test_a_full_disk_leaves_the_last_good_checkpoint(line, whole, tmp_path):
    logs, size = tmp_path / "logs", (whole / "logs/cmlfa/last.safetensors").stat().st_size
    with disk(logs, int(2.2 * size)) as there: # two checkpoints, but not the best epoch beside them
        full = None if there else (10, partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size // 2, resource.getrlimit(resource.RLIMIT_FSIZE)[1])))
        code, said = end(start([*line, "--keep_checkpoints", "1"], tmp_path, full), tmp_path)
        assert code == 2 and re.search(FULL, said) and "Traceback" not in said, said
        kept = int(re.search(r"The run is kept up to step (\d+) in logs/cmlfa/last.safetensors; go on with: cmlfa_train", said)[1])
        assert kept >= 10
        if there: remount(logs, "size=1g")
        code, said = end(start([*line, "--keep_checkpoints", "1", "--resume"], tmp_path), tmp_path)
        assert code == 0 and f"step {kept}" in said, said
        same(tmp_path, whole)


def test_a_loss_that_is_no_number_names_itself_and_its_images(line, tmp_path):
    code, said = end(start([*line, "--lr", "1e20", "--log_period", "5", "--checkpoint_steps", "0"], tmp_path), tmp_path)
    assert code == 2 and re.search(r"step \d: (itc|sdm|id|mlm)( and (itc|sdm|id|mlm))* is not finite", said) and said.count(".jpg") > 5, said
    assert "Nothing of this run is kept yet; begin again with" in said and "Traceback" not in said, said
