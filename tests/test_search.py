"""Indexing and searching as people do it: commands in processes of their own, killed, two at once, on a server that is not there."""
import fcntl
import os
import re
import shutil
import subprocess
import time
from importlib.util import find_spec

import numpy as np
import psutil
import pytest
import torch
from conftest import BIN, run
from forked import ENTRIES, Command

from cmlfa.clip import ARCHS
from cmlfa.index import index
from cmlfa.model import CMLFA
from cmlfa.search import search
from cmlfa.store import Store


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A small model with random weights, saved."
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    CMLFA(ARCHS["tiny"], prototypes=2, lfa_layers=1, losses="itc").save_pretrained(folder)
    return folder


@pytest.fixture
def photos(data, tmp_path):
    "Sixty good images, three bad ones and a loop."
    folder = tmp_path / "photos"
    good = sorted((data / "CUHK-PEDES/imgs").rglob("*.jpg"))[:60]
    for k, f in enumerate(good):
        (folder / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(f, folder / "ab"[k % 2] / f"{k:02}.jpg")
    (folder / "cut.jpg").write_bytes(good[0].read_bytes()[:600])
    (folder / "empty.png").touch()
    (folder / "text.webp").write_text("no image")
    (folder / "a/loop").symlink_to(folder)
    return folder


SLOWLY = "import sys, time, cmlfa.index as i, cmlfa.store as s; real = s.Store.put; s.Store.put = lambda *a: (real(*a), time.sleep(.2))[0]; i.main(sys.argv[1:])" # or on a busy machine it would be over before anybody looks


def contents(store):
    "Path to vector of everything in a store."
    with Store(store) as s: return {i.path: np.array(s.vectors[i.row]) for i in s.known().values()}


def same(a, b):
    "The same images with the same vectors, to the rounding of fp16."
    return a.keys() == b.keys() and all(np.abs(a[p] - b[p]).max() < 2e-3 for p in a)


def starts(command):
    "In a session of its own, so that all of it can be killed."
    name, *args = command
    if name in ("python", *ENTRIES): return Command(name, *args, cwd=".", session=True)
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def kill_while_writing(command, files, limit=300, least=1):
    "Start a command and kill it with all its children once the files have grown by so many bytes, or the seconds are over; whether it was killed because they grew."
    size = lambda: sum(f.stat().st_size for f in files() if f.exists())
    before, p, end, grown = size(), starts(command), time.monotonic() + limit, False
    while p.poll() is None and not grown and time.monotonic() < end:
        time.sleep(.002)
        grown = size() >= before + least
    killed = p.poll() is None
    if killed:
        for one in [psutil.Process(p.pid), *psutil.Process(p.pid).children(recursive=True)]: one.kill() # a launcher gives its processes groups of their own
    p.wait()
    return killed and grown


def test_a_mixed_folder_is_indexed_killed_resumed_and_searched(photos, model, tmp_path):
    store, command = tmp_path / "store", ["cmlfa_index", photos, "--store", tmp_path / "store", "--model", model, "--batch_size", "4", "--num_workers", "0"]
    killed = [kill_while_writing(["python", "-c", SLOWLY, *command[1:]], lambda: [store / "vectors.f16"]) for _ in range(2)]
    assert all(killed)
    with Store(store) as s: assert 4 <= len(s) < 60 # it opens, and knows what it had finished
    assert search("a red coat", store, 3)
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0 and "3 skipped" in done.stdout and "cut.jpg" in done.stdout and not done.stderr, done.stdout + done.stderr
    index(photos, tmp_path / "whole", model)
    assert len(contents(store)) == 60 and same(contents(store), contents(tmp_path / "whole"))
    (photos / "a/00.jpg").unlink()
    assert "0 new, 0 changed, 1 deleted, 59 unchanged" in run(*command, cwd=tmp_path).stdout
    found = run("cmlfa_search", "a person in a red coat", "--not", "a hat", "--where", "folder=b", "--store", store, "-k", "40", "--html", "found.html", "--png", "found.png", cwd=tmp_path)
    assert found.returncode == 0 and "30 images were found and 40 asked for" in found.stderr, found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) == 30 and all("/photos/b/" in l for l in lines)
    scores = [float(l.split()[1]) for l in lines]
    assert scores == sorted(scores, reverse=True)
    assert (tmp_path / "found.html").read_text(encoding="utf-8").count("<figure") == 30 and (tmp_path / "found.png").stat().st_size > 10_000


def test_many_processes_killed_and_resumed_by_another_number_of_them(photos, model, tmp_path):
    store = tmp_path / "store"
    args = [photos, "--store", store, "--model", model, "--batch_size", "4", "--num_workers", "0", "--cpu"]
    (tmp_path / "slowly.py").write_text(SLOWLY)
    two = [BIN / "torchrun", "--standalone", "--nproc_per_node", "2", tmp_path / "slowly.py", *args]
    assert kill_while_writing(two, lambda: [store / f"parts/{r}/vectors.f16" for r in (0, 1)], least=3 * 4 * 256) # three batches, of which one at least counts already
    assert list((store / "parts").glob("*/vectors.f16"))
    done = subprocess.run([BIN / "torchrun", "--standalone", "--nproc_per_node", "3", "--no-python", BIN / "cmlfa_index", *args], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    counts = [int(n) for n in re.search(r"(\d+) new, (\d+) changed.* (\d+) unchanged", done.stdout).groups()]
    assert 0 < counts[0] < 60 and sum(counts) == 60, done.stdout # what the killed run had embedded was taken over, and it had not embedded all
    index(photos, tmp_path / "whole", model)
    assert same(contents(store), contents(tmp_path / "whole")) and not list((store / "parts").iterdir())


def test_two_writers_and_a_reader(photos, model, tmp_path):
    store = tmp_path / "store"
    index(photos, store, model)
    before = contents(store)
    with open(store / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("cmlfa_index", photos, "--store", store, cwd=tmp_path)
        assert done.returncode == 2 and "is writing into this store" in done.stderr and done.stderr.count("\n") == 1
        assert len(search("a red coat", store, 5)) == 5
    assert same(before, contents(store))


def test_a_store_that_was_cut_off_is_mended_by_indexing_again(photos, model, tmp_path):
    store = tmp_path / "store"
    index(photos, store, model)
    before = contents(store)
    os.truncate(store / "vectors.f16", (store / "vectors.f16").stat().st_size // 2 + 3)
    done = run("cmlfa_search", "a red coat", "--store", store, cwd=tmp_path)
    assert done.returncode == 2 and "the rest was cut off; run cmlfa_index again" in done.stderr and done.stderr.count("\n") == 1
    assert index(photos, store).new == 30
    assert same(before, contents(store))


def test_milvus_lite_gives_the_same_answers_as_the_folder(photos, model, tmp_path):
    pytest.importorskip("milvus_lite")
    (tmp_path / "cameras.csv").write_text("path,camera\n" + "".join(f"{'ab'[k % 2]}/{k:02}.jpg,{k % 3}\n" for k in range(60)))
    answers = []
    for place in ("people", "people.db"):
        done = run("cmlfa_index", photos, "--store", place, "--model", model, "--metadata", "cameras.csv", cwd=tmp_path)
        assert done.returncode == 0 and "60 new" in done.stdout and not done.stderr, done.stdout + done.stderr
        assert "0 new, 0 changed, 0 deleted, 60 unchanged" in run("cmlfa_index", photos, "--store", place, cwd=tmp_path).stdout
        found = run("cmlfa_search", "a red coat", "--where", "camera=1", "--store", place, "-k", "7", cwd=tmp_path)
        answers.append([(line.split()[0], line.split()[-1], round(float(line.split()[1]), 3)) for line in found.stdout.splitlines()])
    assert len(answers[0]) == 7 and answers[0] == answers[1]


def test_what_is_refused(photos, model, tmp_path):
    index(photos, tmp_path / "store", model)
    away = "Milvus does not answer" if find_spec("pymilvus") else "pip install 'cmlfa[milvus]'"
    cases = [(["cmlfa_search", "red", "--store", "http://127.0.0.1:9"], away), (["cmlfa_search", "red", "--store", "nowhere"], "there is no store here"),
        (["cmlfa_search", " ", "--store", "store"], "holds no word"), (["cmlfa_search", "--store", "store"], "there is nothing to look for"),
        (["cmlfa_index", "store", "--store", "other", "--model", model], "holds no image")]
    for (command, *args), words in cases:
        done = run(command, *args, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1 and not done.stdout, done.stderr
    done = run("cmlfa_search", "穿红色外套的女人", "--store", "store", "-k", "2", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2 and "the model has learnt English" in done.stderr
