"""How long each notebook runs: processor time on one core, written to benchmarks/notebooks.json, from which nbs/20_map.ipynb makes its table."""
import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/notebooks.json"


def spent() -> float:
    "Processor seconds of all child processes so far."
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


def run(notebook: Path) -> float:
    "Run one notebook as CI does; its processor seconds."
    start = spent()
    done = subprocess.run([Path(sys.executable).with_name("nbdev_test"), "--path", notebook], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode: sys.exit(f"{notebook.name} fails:\n{done.stdout}{done.stderr}")
    return spent() - start


def processor() -> str:
    "The model of this machine's processor, without its clock."
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((" ".join(l.split(":")[1].split()[:2]) for l in lines if l.startswith("model name")), platform.processor())


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("notebooks", nargs="*", help="names such as 05_lfa (default: all)")
    names = p.parse_args().notebooks or [f.stem for f in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))]
    old = {n: s for n, s in json.loads(RECORD.read_text())["seconds"].items() if (ROOT / "nbs" / f"{n}.ipynb").exists()} if RECORD.exists() else {}
    for name in names:
        old[name] = round(run(ROOT / "nbs" / f"{name}.ipynb"), 1)
        print(f"{name:<16}{old[name]:7.1f} s", flush=True)
        RECORD.write_text(json.dumps(dict(command="python tools/times.py", date=date.today().isoformat(), machine=f"{processor()}, one core",
            versions=f"torch {version('torch')}, Python {platform.python_version()}", seconds=dict(sorted(old.items()))), indent=1) + "\n")
