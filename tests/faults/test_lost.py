"""A process of a training that is killed, and one that hangs: the others end, and the run goes on from its last checkpoint."""
import os
import re
import signal
from datetime import timedelta
from functools import partial

import pytest
import soak
import test_resume
from conftest import PUBLISHED, TINY


def train_as(rank, place, patience, argv, folder, at=None):
    "One of two processes, as a launcher would start it, that wait for each other no longer than so many seconds; they meet at a file, since a port that is free now may be taken a moment later."
    import torch
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1", GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group = partial(torch.distributed.init_process_group, timeout=timedelta(seconds=patience), init_method=f"file://{place}", rank=rank, world_size=2)
    soak.train(argv, folder, at)


@pytest.mark.parametrize("number, patience, words", [(signal.SIGKILL, 3000, "has ended or cannot be reached"), (signal.SIGSTOP, 30, "has not answered in time")], ids=["killed", "hung"])
def test_a_process_that_is_lost_ends_the_training_and_the_run_goes_on(number, patience, words, data, tmp_path):
    line = [*PUBLISHED.format(data).split(), *TINY, *test_resume.FLAGS, "--batch_size", "8", "--num_epoch", "3", "--output_dir", str(tmp_path / "0/logs")]
    for n in "01": (tmp_path / n).mkdir()
    lost = 6, partial(signal.raise_signal, number)
    first, second = (soak.start(tmp_path / str(n), train_as, n, tmp_path / "meet", patience, line, tmp_path / str(n), at) for n, at in enumerate((None, lost)))
    first.join(1000) # and not as long as patience may last
    said = (tmp_path / "0/out.txt").read_text()
    assert first.exitcode == 2 and f"another process of this training {words}" in said and "Traceback" not in said, said
    soak.kill(second)
    last = soak.start(tmp_path / "1", soak.train, [*line, "--resume"], tmp_path / "1")
    last.join(1000)
    said = (tmp_path / "1/out.txt").read_text()
    assert last.exitcode == 0 and re.search(r"going on from last.safetensors at epoch \d", said), said
    steps = [r["step"] for r in test_resume.history(tmp_path / "0") if "loss" in r]
    assert len(steps) > 5 and steps == list(range(len(steps)))
