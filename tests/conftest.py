"""What the tests share: commands as processes, and a small data set."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell that starts the tests in the background ignores Ctrl-C, and what they start would inherit that
TINY = "--pretrain_choice none --backbone tiny --img_size 96 48 --stride_size 12".split()
PUBLISHED = "--name cmlfa --img_aug --batch_size 64 --MLM --loss_names sdm+mlm+id+itc --dataset_name CUHK-PEDES --root_dir {} --num_epoch 150 --id_loss_weight 0.5 --mlm_loss_weight 0.5"


def run(command, *args, cwd, check=False, **kw):
    "A console script in a process of its own; its output as text."
    done = subprocess.run([BIN / command, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=400, **kw)
    if check: assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    "SynthPEDES, small, in the CUHK-PEDES layout."
    root = tmp_path_factory.mktemp("data")
    run("cmlfa_synth", root, "--size", "small", cwd=root, check=True)
    return root


@pytest.fixture
def copy(data, tmp_path):
    "A copy of the data that a test may damage."
    import shutil
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data"
