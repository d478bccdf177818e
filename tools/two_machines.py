"""Two machines train together, a part of one is lost, and the training goes on: python tools/two_machines.py [--lose process|machine]

Each "machine" is a torchrun agent of its own with one training process. They share a folder, as machines of a cluster do, and meet on the
loopback interface, where possible in a network of their own that nothing outside can reach."""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
SETTINGS = ("--pretrain_choice none --backbone tiny --img_size 96 48 --stride_size 12 --cpu --dataset_name CUHK-PEDES --batch_size 8 --lr 1e-3 "
            "--img_aug --MLM --loss_names sdm+mlm+id+itc --num_epoch 2 --log_period 1 --checkpoint_steps 2 --resume").split()
MEET = "--nnodes 1:2 --nproc_per_node 1 --max_restarts 3 --rdzv_backend c10d --rdzv_endpoint 127.0.0.1:29417 --rdzv_id two --local_addr 127.0.0.1 --no_python cmlfa_train".split()


def own_network() -> list[str]:
    "What to put before a command so that it runs in a network of its own; nothing where the system does not allow it."
    prefix = ["unshare", "--user", "--map-root-user", "--net"]
    tried = shutil.which("unshare") and shutil.which("ip") and subprocess.run([*prefix, "ip", "link", "set", "lo", "up"], capture_output=True)
    return [*prefix, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"] if tried and tried.returncode == 0 else []


def start(name: str, work: Path) -> subprocess.Popen:
    "One machine; what it says is passed on with its name in front."
    # A store of its own for each meeting: in the shared one, machines that have counted different numbers of restarts would never find each other
    env = os.environ | dict(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", PATH=f"{BIN}:{os.environ['PATH']}", PYTHONWARNINGS="ignore")
    agent = subprocess.Popen([BIN / "torchrun", *MEET, *SETTINGS, "--root_dir", work / "data", "--output_dir", work, "--name", "run"], env=env, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    def pass_on():
        for line in agent.stdout:
            print(f"{name}: {line}", end="", file=sys.stderr)
            if "[rank" not in line and any(word in line for word in ("epoch", "train together", "going on", "nothing to go on", "Signal", "exitcode", "restart")): print(f"{name} | {line.rstrip()[:170]}", flush=True)
    threading.Thread(target=pass_on, daemon=True).start()
    return agent


def steps(work: Path) -> list[int]:
    "Steps that the run has written down."
    file = work / "run/history.jsonl"
    rows = [json.loads(l) for l in file.read_text().splitlines() if l.endswith("}")] if file.exists() else []
    return [r["step"] for r in rows if "loss" in r]


def lose(agent: subprocess.Popen, what: str) -> str:
    "Kill the training process of a machine, or the whole machine."
    workers = psutil.Process(agent.pid).children(recursive=True)
    for p in workers: p.send_signal(signal.SIGKILL)
    if what == "machine": agent.kill()
    return f"kill -9 of {'its training process' if what == 'process' else 'the machine B, agent and all'} (pid {', '.join(str(p.pid) for p in workers)})"


def watch(work: Path, what: str) -> bool:
    "The experiment; whether it went well."
    subprocess.run([BIN / "cmlfa_synth", work / "data", "--size", "small"], check=True, stdout=subprocess.DEVNULL)
    machines = {name: start(name, work) for name in "AB"}
    try:
        while len(steps(work)) < 5:
            if any(m.poll() is not None for m in machines.values()): return print("a machine ended before its time") or False
            time.sleep(0.2)
        before = steps(work)[-1]
        print(f"    step {before} is done. Machine B: {lose(machines['B'], what)}", flush=True)
        left = [machines["A"]] + [machines["B"]] * (what == "process")
        codes = [m.wait(timeout=900) for m in left]
    finally:
        for m in machines.values():
            if m.poll() is None: os.killpg(m.pid, signal.SIGTERM)
    done = steps(work)
    once = done == list(range(len(done)))
    print(f"    the machines left ended with {codes}; steps written: {len(done)}, each exactly once: {once}; metrics.json: {(work / 'run/metrics.json').exists()}")
    return codes == [0] * len(left) and (once or what == "machine") and (work / "run/metrics.json").exists()


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--lose", choices=("process", "machine"), default="process", help="what is killed; after the loss of a machine the other goes on alone")
    p.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    network = [] if args.inside else own_network()
    if network: sys.exit(subprocess.run([*network, sys.executable, __file__, "--inside", "--lose", args.lose]).returncode)
    print("    a network of its own, with nothing but the loopback interface" if args.inside else "    on the loopback interface", flush=True)
    with tempfile.TemporaryDirectory() as work: sys.exit(not watch(Path(work), args.lose))
