"""Train one configuration with several seeds and record what came out: python tools/seeds.py [configs/demo.yaml] [1 2 3]"""
import json
import platform
import re
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from cmlfa.synth import ceiling
from cmlfa.config import load_config

KEPT = ("t2i", "i2t", "epoch", "selected_on", "queries", "gallery", "identities", "train_seconds")


def machine() -> str:
    "The processor's name and its cores."
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*:\s*(.*)", info)
    return f"{name[1].strip() if name else platform.processor()}, {len(re.findall('^processor', info, re.M)) or '?'} cores"


def val_curve(folder: Path) -> list[float]:
    "Rank-1 on val after each epoch, from a run's log."
    return [float(r) for r in re.findall(r"epoch \d+ on val: R1 ([\d.]+)", (folder / "log.txt").read_text())]


def run(config: str, seed: int) -> dict:
    "One training in a process of its own."
    cfg = load_config(config)
    name = f"{cfg.name}-seed{seed}"
    command = [Path(sys.executable).with_name("cmlfa_train"), "--config_file", config, "--name", name, "--seed", str(seed)]
    subprocess.run(command, check=True)
    folder = Path(cfg.output_dir) / name
    report = json.loads((folder / "metrics.json").read_text())
    return {"seed": seed, "val_R1": val_curve(folder)} | {k: report[k] for k in KEPT}


if __name__ == "__main__":
    config, seeds = (sys.argv[1:] or ["configs/demo.yaml"])[0], [int(s) for s in sys.argv[2:]] or [1, 2, 3]
    runs = [run(config, s) for s in seeds]
    cfg = load_config(config)
    attributes = json.loads((Path(cfg.root_dir) / cfg.dataset_name / "attributes.json").read_text())["images"]
    record = dict(
        command="python tools/seeds.py " + " ".join([config, *map(str, seeds)]), date=str(date.today()), machine=machine(),
        versions=", ".join(f"{p} {version(p)}" for p in ("torch", "timm", "cmlfa")), python=platform.python_version(),
        chance=100 / runs[0]["identities"], ceiling=round(ceiling(attributes), 2), runs=runs)
    out = Path("benchmarks") / f"{cfg.name}.json"
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{out}: Rank-1 {[round(r['t2i']['R1'], 2) for r in runs]}")
