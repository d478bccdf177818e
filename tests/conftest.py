"""What the tests share: commands as processes, and a small data set."""
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from forked import BIN, ENTRIES, Command, stay_here

sys.addaudithook(stay_here) # no network in the tests' own process either
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell that starts the tests in the background ignores Ctrl-C, and what they start would inherit that
os.environ["CUDA_VISIBLE_DEVICES"] = "" # what is expected here is what a CPU gives, on a machine with a GPU too
TINY = "--pretrain_choice none --backbone tiny --img_size 96 48 --stride_size 12".split()
PUBLISHED = "--name cmlfa --img_aug --batch_size 64 --MLM --loss_names sdm+mlm+id+itc --dataset_name CUHK-PEDES --root_dir {} --num_epoch 150 --id_loss_weight 0.5 --mlm_loss_weight 0.5"


def run(command, *args, cwd, check=False, env=None):
    "A command, or python with -c and code, in a process of its own; its output as text. With an environment of its own it is started afresh, which takes seconds."
    if env is None and (command in ("python", *ENTRIES)):
        p = Command(command, *args, cwd=cwd)
        done = subprocess.CompletedProcess(p.args, p.wait(), p.stdout, p.stderr)
    else: done = subprocess.run([BIN / command, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=400)
    if check: assert done.returncode == 0, done.stdout + done.stderr
    return done


@contextmanager
def disk(folder, size):
    "A file system of its own for a folder; false where one may not be mounted."
    folder.mkdir(exist_ok=True)
    there = sys.platform == "linux" and os.getuid() == 0 and not subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode
    try: yield there
    finally:
        if there: subprocess.run(["umount", "-l", folder], check=True)


def remount(folder, how): subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


FULL = r"No space left on device|File too large|disk is full|disk I/O error|Disk quota" # the second: where no disk may be mounted, a bound on each file stands for it


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    "SynthPEDES, small, in the CUHK-PEDES layout."
    root = tmp_path_factory.mktemp("data")
    run("cmlfa_synth", root, "--size", "small", cwd=root, check=True)
    return root


@pytest.fixture
def copy(data, tmp_path):
    "A copy of the data that a test may damage."
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data"
