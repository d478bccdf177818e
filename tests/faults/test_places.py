"""Disks that are full, folders that may not be written, two runs in one place, clocks that go back, names that are odd: what is promised for each, tried."""
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import psutil
import pytest
import soak
import test_port
import test_resume
from conftest import FULL, PUBLISHED, TINY, disk, remount

from cmlfa.checkpoint import newest, places
from cmlfa.doctor import examine_all
from cmlfa.export import main as export_main
from cmlfa.index import index
from cmlfa.index import main as index_main
from cmlfa.items import Item, Model
from cmlfa.pack import image_source, write_pack
from cmlfa.pack import main as pack_main
from cmlfa.port import main as convert_main
from cmlfa.prep import main as check_main
from cmlfa.protocol import main as protocol_main
from cmlfa.search import main as search_main
from cmlfa.search import search, sheet
from cmlfa.share import write_atomic
from cmlfa.store import Store
from cmlfa.support import UserError
from cmlfa.synth import write_synth
from cmlfa.synth import main as synth_main
from cmlfa.train import main as train_main

ROOT = hasattr(os, "getuid") and os.getuid() == 0 # to whom nothing is forbidden


@contextmanager
def little_room(folder, size, file):
    "A folder with room for so many bytes, or, where none can be mounted, a bound on each file; and what makes room."
    with disk(folder, size) as there:
        if there: yield lambda: remount(folder, "size=1g")
        else:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file, before[1]))
            try: yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
            finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def model(tmp_path_factory): return soak.tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize("part, times", [("kill drawing", 2), ("kill checkpoints", 3), ("kill storing", 3)])
def test_killed_and_nothing_is_lost(part, times, tmp_path):
    found = soak.PARTS[part][0](times, tmp_path)
    assert found["tried"] == times and not found["lost"], found


@pytest.mark.parametrize("what, inner", [("drawing", "synth._save_image"), ("packing", "pack.Files"), ("reading images", "doctor.read_image_file")])
def test_a_process_that_helps_is_killed(what, inner, data, copy, tmp_path, monkeypatch):
    def work():
        if what == "drawing":
            write_synth(tmp_path / "out", "small", workers=2, progress=False)
            return soak.tree(tmp_path / "out/CUHK-PEDES/imgs") == soak.tree(data / "CUHK-PEDES/imgs")
        if what == "packing": return write_pack(copy, "CUHK-PEDES", (96, 48), workers=2, progress=False)
        return len(examine_all(sorted(map(str, copy.rglob("*.jpg"))) * 3, workers=2)) == 3 * 192
    def once(*args):
        if multiprocessing.parent_process() and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            signal.raise_signal(signal.SIGKILL)
        return real(*args)
    name = f"cmlfa.{inner}"
    real = getattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2])
    monkeypatch.setattr(name, once)
    with pytest.raises(UserError, match=f"a process that was {what} got killed, perhaps for want of memory; .* with fewer --workers"): work()
    assert work()


def test_a_disk_that_fills_up_while_people_are_drawn(data, tmp_path):
    with little_room(tmp_path / "out", 400_000, 60_000) as make_room:
        with pytest.raises(UserError, match=f"({FULL}).*What was drawn is kept, and the same command goes on") as e: write_synth(tmp_path / "out", "small", workers=1, progress=False)
        assert "\n" not in str(e.value)
        drawn = len(list((tmp_path / "out").glob(".*/imgs/*/*.jpg")))
        assert drawn > 20 and not (tmp_path / "out/CUHK-PEDES").exists()
        make_room()
        write_synth(tmp_path / "out", "small", workers=1, progress=False)
        whole = soak.tree(data / "CUHK-PEDES")
        whole.pop(".check.json", None) # a verdict that another test may have left
        assert soak.tree(tmp_path / "out/CUHK-PEDES") == whole


def test_a_disk_that_fills_up_while_a_store_is_written(data, model, tmp_path):
    photos = data / "CUHK-PEDES/imgs"
    with little_room(tmp_path / "disk", 400_000, 300_000) as make_room:
        with pytest.raises(UserError, match=f"({FULL}).*") as e: index(photos, tmp_path / "disk/store", model, batch_size=4)
        assert "\n" not in str(e.value)
        make_room()
        with Store(tmp_path / "disk/store") as s: kept = len(s)
        assert 4 <= kept < 192 and len(search("a red coat", tmp_path / "disk/store", 3)) == 3
        assert index(photos, tmp_path / "disk/store", batch_size=4).new == 192 - kept
        with Store(tmp_path / "disk/store") as s: assert len(s) == 192


def test_a_disk_that_fills_up_while_an_index_is_written(tmp_path):
    store, about, images = tmp_path / "disk/store", Model("none", "f" * 64, soak.DIM), [Item("/photos", f"{k}.jpg", hash=str(k)) for k in range(1000)]
    vectors = np.stack([soak.vector_of(i.hash) for i in images])
    with little_room(tmp_path / "disk", 2_000_000, 300_000) as make_room:
        with Store(store, about, write=True) as s:
            s.put(images[:700], vectors[:700])
            s.reindex("hnsw")
        (tmp_path / "disk/other").write_bytes(bytes(shutil.disk_usage(store).free - 160_000 if shutil.disk_usage(store).total < 3_000_000 else 0)) # what else lies there
        with Store(store, about, write=True) as s:
            s.put(images[700:], vectors[700:])
            with pytest.raises(UserError, match=f"index-1000-hnsw.faiss: cannot be written .({FULL}).*make room, the store itself is whole") as e: s.reindex("hnsw")
            assert "\n" not in str(e.value)
            with Store(store) as fresh:
                for reader in (s, fresh): assert reader.index["rows"] == 700 and [found[0][1].path for found in reader.search(vectors[::100], 1)] == [f"{k}.jpg" for k in range(0, 1000, 100)]
            assert [f.name for f in store.glob("index-*")] == ["index-700-hnsw.faiss"]
        make_room()
        with Store(store, about, write=True) as s: assert "recall@10" in s.reindex("hnsw") and s.index["rows"] == 1000


def called(main, *args):
    "Exit status of a command, called in this process."
    try: main([str(a) for a in args])
    except SystemExit as e: return e.code
    return 0


@pytest.fixture(scope="module")
def frozen(data, model, tmp_path_factory):
    "A folder with data and a store, into which nobody may write."
    folder = tmp_path_factory.mktemp("places") / "frozen"
    with disk(folder, "200m") as there:
        if ROOT and not there: pytest.skip("root may write everywhere, and nothing can be mounted here")
        shutil.copytree(data, folder / "data")
        shutil.copytree(model, folder / "model")
        test_port.save(folder, dict(model=test_port.state()), "published.pth")
        index(data / "CUHK-PEDES/imgs", folder / "store", folder / "model")
        if there: remount(folder, "ro")
        else: [p.chmod(0o555) for p in [folder, *folder.rglob("*")] if p.is_dir()]
        yield folder
        if not there: [p.chmod(0o755) for p in [folder, *folder.rglob("*")] if p.is_dir()]


READ_ONLY = {
    "drawing": lambda f: (synth_main, f / "new", "--size", "small"), "packing": lambda f: (pack_main, f / "data", "--img_size", 96, 48, "--workers", 1),
    "training": lambda f: (train_main, *PUBLISHED.format(f / "data").split(), *TINY, "--cpu", "--output_dir", f / "logs"),
    "indexing": lambda f: (index_main, f / "data/CUHK-PEDES/imgs", "--store", f / "new", "--model", f / "model", "--cpu", "--num_workers", 0),
    "checking": lambda f: (check_main, f / "data", "--json", f / "found.json"), "testing": lambda f: (protocol_main, f / "model", "--root_dir", f / "data", "--out", f / "new"),
    "exporting": lambda f: (export_main, f / "model", f / "new", "--to", "folder", "--data", "x"), "converting": lambda f: (convert_main, f / "published.pth", *test_port.SIZE, "--out", f / "new"),
    "indexing again": lambda f: (index_main, f / "data/CUHK-PEDES/imgs", "--store", f / "store", "--cpu", "--num_workers", 0), "a contact sheet": lambda f: (search_main, "a red coat", "--store", f / "store", "--html", f / "found.html", "--cpu"),
}


@pytest.mark.parametrize("what", READ_ONLY)
def test_a_folder_that_may_not_be_written(what, frozen, capfd):
    main, *args = READ_ONLY[what](frozen)
    code, err = called(main, *args), capfd.readouterr().err
    assert code == 2 and re.search("Read-only file system|Permission denied|readonly database|may not be written to", err) and str(frozen) in err and "Traceback" not in err, err
    assert len([line for line in err.splitlines() if "cmlfa_" in line or "__main__" in line or "pytest" in line]) <= 1, err


def test_a_store_that_may_not_be_written_is_searched(frozen): assert len(search("a red coat", frozen / "store", 3)) == 3


def unsteady(argv, folder, at):
    "A training on a machine whose clock is set back by an hour every now and then."
    real, calls = time.time, [0]
    def clock():
        calls[0] += 1
        return real() - 3600 * (calls[0] // 20)
    time.time = clock
    soak.train(argv, folder, at)


def test_two_runs_in_one_folder_a_clock_set_back_and_other_data(copy, tmp_path):
    line = [*PUBLISHED.format(copy).split(), *TINY, *test_resume.FLAGS, "--checkpoint_steps", "0"]
    run = tmp_path / "run"
    first = soak.start(tmp_path, unsteady, [*line, "--num_epoch", "2"], run, (3, partial(signal.raise_signal, signal.SIGSTOP))) # it must neither end before the second has begun nor write over what that says
    for name in ("second", "whole"): (tmp_path / name).mkdir()
    limit = time.monotonic() + 300
    while psutil.Process(first.pid).status() != psutil.STATUS_STOPPED and time.monotonic() < limit: time.sleep(.01)
    try:
        second = soak.start(tmp_path / "second", soak.train, [*line, "--num_epoch", "2", "--resume"], run)
        second.join(1000)
        said = (run / "out.txt").read_text() # both write into this file; the second has begun it anew
    finally: os.kill(first.pid, signal.SIGCONT)
    assert second.exitcode == 2 and f"process {first.pid} is training in this folder; wait until it has ended, or choose another --name" in said and "Traceback" not in said, said
    whole = soak.start(tmp_path / "whole", soak.train, [*line, "--num_epoch", "2"], tmp_path / "whole") # nobody disturbs it
    first.join(1000)
    assert first.exitcode == 0, said
    soak.end(whole, tmp_path / "whole")
    test_resume.same(run, tmp_path / "whole")
    assert [r["step"] for r in test_resume.history(run) if "loss" in r] == list(range(24))
    file = copy / "CUHK-PEDES/reid_raw.json"
    before = file.read_text()
    entries = json.loads(before)
    next(e for e in entries if e["split"] == "train")["captions"][0] = "Somebody else."
    file.write_text(json.dumps(entries))
    weights = (run / "logs/cmlfa/last.safetensors").read_bytes()
    third = soak.start(tmp_path / "second", soak.train, [*line, "--num_epoch", "3", "--resume"], run)
    third.join(1000)
    said = (run / "out.txt").read_text()
    assert third.exitcode == 2 and "last.safetensors: the training data have changed since the run began" in said and "Traceback" not in said, said
    assert (run / "logs/cmlfa/last.safetensors").read_bytes() == weights


def test_the_newest_checkpoint_is_not_told_by_the_clock(tmp_path):
    import torch
    for n, name in enumerate(("last-2", "last-1", "last")): write_atomic({"w": torch.zeros(1)}, tmp_path / f"{name}.safetensors", step=n)
    for n, name in enumerate(("last", "last-1", "last-2")): os.utime(tmp_path / f"{name}.safetensors", (10**9 * n, 10**9 * n))
    assert newest(tmp_path)[2]["step"] == 2 and [f.stem for f in places(tmp_path)] == ["last", "last-1", "last-2"]


ODD = ["with a space.jpg", "new\nline.jpg", "\U0001f600\u202egnp.jpg", "x" * 251 + ".jpg", "é" * 125 + ".JPG", "-rf.jpg", "'a\"b`$(touch ran).jpg", "<script>alert(1)</script>.jpg", "%2e%2e.jpg", "a\\b.jpg", "nul\x01.jpg"]


def test_odd_names_and_a_clock_set_back_in_a_gallery(data, model, tmp_path):
    photos, store = tmp_path / "photos", tmp_path / "store"
    photos.mkdir()
    good = sorted((data / "CUHK-PEDES/imgs").rglob("*.jpg"))
    names = [n for n in ODD if "/" not in n]
    for name, f in zip(names, good): shutil.copy(f, photos / name)
    shutil.copy(good[-1], os.fsencode(photos) + b"/\xff\xfe.jpg") # no text in any encoding
    report = index(photos, store, model)
    assert report.new == len(names) and len(report.bad) == 1 and "its name is no UTF-8" in str(report) and "\x01" not in str(report)
    found = search("a red coat", store, len(names))
    assert {h.item.path for h in found} == set(names) and all(h.file.exists() for h in found)
    assert "<script>" not in sheet(found) and str(found).count("\n") == len(names) - 1
    for f in photos.iterdir(): os.utime(f, (0, 0)) # as if written before all that is known
    shutil.copyfile(good[40], photos / names[0])
    os.utime(photos / names[0], (4e9, 4e9)) # and one in the far future
    report = index(photos, store)
    assert (report.new, report.changed, report.deleted) == (0, len(names), 0) and report.again == len(names) - 1
    assert index(photos, store).changed == 0


def test_odd_names_in_a_pack(copy):
    images, file = copy / "CUHK-PEDES/imgs", copy / "CUHK-PEDES/reid_raw.json"
    entries = json.loads(file.read_text())
    names = [n for n in ODD if "\\" not in n and "/" not in n]
    for e, name in zip(entries, names):
        (images / e["file_path"]).rename(images / name)
        e["file_path"] = name
    file.write_text(json.dumps(entries))
    write_pack(copy, "CUHK-PEDES", (96, 48), workers=1, progress=False)
    packed = image_source(copy, "CUHK-PEDES", [str(images / n) for n in names], (96, 48))
    assert type(packed).__name__ == "Packed" and len(packed) == len(names)
