"""A process of a training that is killed, and one that hangs: the others end, and the run goes on from its last checkpoint."""
import os
import re
import signal
import socket
import time
from datetime import timedelta
from functools import partial

import pytest
import soak
import test_resume
from conftest import PUBLISHED, TINY


def train_as(rank, port, patience, argv, folder):
    "One of two processes, as a launcher would start it, that wait for each other no longer than so many seconds."
    import torch
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group = partial(torch.distributed.init_process_group, timeout=timedelta(seconds=patience))
    soak.train(argv, folder)


@pytest.mark.parametrize("number, patience", [(signal.SIGKILL, 600), (signal.SIGSTOP, 20)], ids=["killed", "hung"])
def test_a_process_that_is_lost_ends_the_training_and_the_run_goes_on(number, patience, data, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    line = [*PUBLISHED.format(data).split(), *TINY, *test_resume.FLAGS, "--batch_size", "8", "--num_epoch", "3", "--output_dir", str(tmp_path / "0/logs")]
    for n in "01": (tmp_path / n).mkdir()
    first, second = (soak.start(tmp_path / str(n), train_as, n, port, patience, line, tmp_path / str(n)) for n in (0, 1))
    test_resume.wait_for(tmp_path / "0", 5, first)
    os.kill(second.pid, number)
    begun = time.monotonic()
    first.join(patience + 120)
    said = (tmp_path / "0/out.txt").read_text()
    assert first.exitcode == 2 and "another process of this training has ended" in said and "Traceback" not in said, said
    assert time.monotonic() - begun < patience + 120
    soak.kill(second)
    last = soak.start(tmp_path / "1", soak.train, [*line, "--resume"], tmp_path / "1")
    last.join(300)
    said = (tmp_path / "1/out.txt").read_text()
    assert last.exitcode == 0 and re.search(r"going on from last.safetensors at epoch \d", said), said
    steps = [r["step"] for r in test_resume.history(tmp_path / "0") if "loss" in r]
    assert len(steps) > 5 and steps == list(range(len(steps)))
