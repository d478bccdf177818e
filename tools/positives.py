"""ITC with all pairs of a person as positives, or with the pair alone: a small training of each, three seeds, into benchmarks/itc_positives.json

    python tools/positives.py

Drawn people, ITC alone, and the identity sampler, which puts four pairs of a person into a batch: there the two settings differ most.
"""
import json
import tempfile
import time
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from seeds import machine, val_curve

from cmlfa.config import Config
from cmlfa.protocol import test_run
from cmlfa.synth import Size, write_synth
from cmlfa.train import make_trainer

OUT, SEEDS, PEOPLE = Path("benchmarks/itc_positives.json"), (1, 2, 3), Size(120, 30, 120, 4, 96, 48)
BASE = Config(pretrain_choice="none", backbone="tiny", img_size=(48, 24), stride_size=12, loss_names="itc", prototypes=0, lr=1e-3, warmup_epochs=1., num_epoch=6,
              batch_size=64, sampler="identity", num_instance=4, img_aug=True, pad=4, cpu=True, num_workers=0, log_period=1000, checkpoint_steps=0)


def measure(folder: Path, positives: str, seed: int) -> dict:
    "One training, tested."
    start = time.process_time()
    trainer, _ = make_trainer(replace(BASE, root_dir=str(folder), output_dir=str(folder), name=f"{positives}-{seed}", itc_positives=positives, seed=seed), progress=False)
    trainer.fit()
    report = test_run(trainer.folder, trainer.cfg)
    return dict(positives=positives, seed=seed, val_R1=val_curve(trainer.folder), epoch=report["epoch"], cpu_seconds=round(time.process_time() - start),
                t2i={k: round(v, 2) for k, v in report["t2i"].items()}, i2t={k: round(v, 2) for k, v in report["i2t"].items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_synth(folder, PEOPLE, progress=False)
        runs = []
        for seed in SEEDS:
            for positives in ("identity", "pair"):
                runs.append(measure(Path(folder), positives, seed))
                print(runs[-1], flush=True)
    record = dict(command="python tools/positives.py", date=str(date.today()), machine=machine() + ", one thread", people=[PEOPLE.train, PEOPLE.val, PEOPLE.test], epochs=BASE.num_epoch,
                  settings={k: getattr(BASE, k) for k in ("backbone", "img_size", "loss_names", "sampler", "num_instance", "batch_size", "lr")}, versions=f"torch {version('torch')}", chance=100 / PEOPLE.test, runs=runs)
    OUT.write_text(json.dumps(record, indent=1) + "\n")
