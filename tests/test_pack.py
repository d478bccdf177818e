"""Packing as a user meets it: a command that may be killed at any moment."""
import random
import re
import shutil
import time

from conftest import FULL, PUBLISHED, TINY, disk, remount, run
from forked import Command

PACK = "import sys, cmlfa.pack as p; p.BLOCK = 4; p.main(sys.argv[1:])" # small blocks: more moments to be killed in
SLOWLY = "import time, cmlfa.pack as p; real = p.write_block; p.write_block = lambda *a, **k: (time.sleep(.05), real(*a, **k))[1]; " + PACK # or on a busy machine all would be done before anybody looks
SIZE = ["--img_size", "192", "96", "--workers", "1"]


def contents(folder):
    "Every file of a pack."
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_a_killed_packing_goes_on(copy, tmp_path):
    command, folder, rng = ["python", "-c", PACK, copy, *SIZE], copy / "CUHK-PEDES/packed", random.Random(0)
    run(*command, cwd=tmp_path, check=True)
    whole = contents(folder / "192x96")
    for f in (folder / "192x96").iterdir(): f.unlink()
    (folder / "192x96").rmdir()
    killed, seen = 0, []
    for _ in range(8):
        p = Command("python", "-c", SLOWLY, copy, *SIZE, cwd=tmp_path)
        before, limit = len(seen), time.monotonic() + 300
        while p.poll() is None and time.monotonic() < limit: # kill it once it has done a few blocks more
            done = folder / ".192x96.part/done"
            seen = done.read_text().split() if done.exists() else seen
            if len(seen) > before + rng.randrange(4): p.kill(); killed += 1; break
            time.sleep(.001)
        p.wait()
        if (folder / "192x96").exists(): break
    assert killed >= 2, "nothing was killed"
    run(*command, cwd=tmp_path, check=True)
    assert contents(folder / "192x96") == whole
    assert [f.name for f in folder.iterdir()] == ["192x96"]


def test_a_full_disk_is_said_and_packing_goes_on(copy, tmp_path):
    folder = copy / "CUHK-PEDES/packed"
    roomy = "import shutil; shutil.disk_usage = lambda _: type('Room', (), dict(free=10**12)); " # what others write after the check
    with disk(folder, "2m") as there:
        if not there: roomy += "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (500_000, r.getrlimit(r.RLIMIT_FSIZE)[1])); "
        for workers in ("1", "2"):
            done = run("python", "-c", roomy + PACK, copy, *SIZE[:-1], workers, cwd=tmp_path)
            assert done.returncode == 2 and re.search(FULL, done.stderr) and "the same command goes on" in done.stderr, done.stderr
        assert not (folder / "192x96").exists()
        if there:
            assert (folder / ".192x96.part/done").read_text().split()
            remount(folder, "size=64m")
        run("python", "-c", PACK, copy, *SIZE, cwd=tmp_path, check=True)
        on_mount = contents(folder / "192x96")
    shutil.rmtree(folder / "192x96", ignore_errors=True)
    run("python", "-c", PACK, copy, *SIZE, cwd=tmp_path, check=True)
    assert contents(folder / "192x96") == on_mount


def test_training_uses_the_pack_and_is_the_same(data, copy, tmp_path):
    run("cmlfa_pack", copy, "--img_size", "96", "48", cwd=tmp_path, check=True)
    logs = []
    for root in (data, copy):
        work = tmp_path / root.parent.name
        work.mkdir()
        done = run("cmlfa_train", *PUBLISHED.format(root).split(), *TINY, "--num_epoch", "2", "--log_period", "1", cwd=work, check=True)
        assert ("images from the pack" in done.stdout) == (root == copy)
        logs.append([l.split(", rate")[0] for l in done.stdout.splitlines() if l.startswith("epoch 1 step")])
    assert logs[0] == logs[1] and len(logs[0]) >= 3


def test_a_stale_pack_stops_training(copy, tmp_path):
    run("cmlfa_pack", copy, "--img_size", "96", "48", cwd=tmp_path, check=True)
    file = copy / "CUHK-PEDES/reid_raw.json"
    file.write_text(file.read_text() + " ")
    done = run("cmlfa_train", *PUBLISHED.format(copy).split(), *TINY, "--num_epoch", "1", cwd=tmp_path)
    assert done.returncode == 2 and "was packed from other annotations" in done.stderr and "Traceback" not in done.stderr


def test_wrong_requests(tmp_path):
    for args, words in ((["nowhere"], "nowhere"), ([".", "--img_size", "0", "3"], "img_size"), ([".", "--img_size", "1000000000", "3"], "img_size"), ([".", "--dataset_name", "Market"], "Market")):
        done = run("cmlfa_pack", *args, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
