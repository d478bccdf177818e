"""Which pairs count as matches in ITC: all of one person (identity), or a caption and its own image only (pair, as published)

    python tools/positives.py [folder for the drawn data and the runs]

ITC alone, from random weights, on 300 drawn people; both settings, both samplers, three seeds; into benchmarks/positives.json.
Rows that stand in the file already are kept, so an interrupted study goes on where it stopped.
"""
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from seeds import machine

from cmlfa.config import Config
from cmlfa.synth import Size, write_synth
from cmlfa.train import train

OUT, SEEDS, EPOCHS = Path("benchmarks/positives.json"), (1, 2, 3), 5
PEOPLE = Size(300, 60, 120, 4, 96, 48)


def measure(folder: str, sampler: str, positives: str, seed: int) -> dict:
    "Train once, on one thread."
    torch.set_num_threads(1)
    cfg = Config(name=f"{sampler}-{positives}-{seed}", output_dir=f"{folder}/runs", root_dir=folder, pretrain_choice="none", backbone="tiny", img_size=(96, 48), stride_size=12,
                 loss_names="itc", prototypes=0, itc_loss_weight=1., itc_positives=positives, sampler=sampler, lr=1e-3, lr_factor=1., batch_size=64, num_epoch=EPOCHS,
                 warmup_epochs=0.5, eval_period=EPOCHS, checkpoint_steps=0, keep_checkpoints=1, num_workers=0, cpu=True, seed=seed, resume=True)
    report = train(cfg, progress=False)
    return {way: {k: round(v, 2) for k, v in report[way].items()} for way in ("t2i", "i2t")}


if __name__ == "__main__":
    folder = (sys.argv[1:] or ["data/positives"])[0]
    write_synth(folder, PEOPLE)
    record = json.loads(OUT.read_text()) if OUT.exists() else dict(
        command="python tools/positives.py", date=str(date.today()), machine=machine(), versions=", ".join(f"{p} {version(p)}" for p in ("torch", "timm", "cmlfa")),
        people=dict(train=PEOPLE.train, val=PEOPLE.val, test=PEOPLE.test), epochs=EPOCHS, batch_size=64, chance=round(100 / PEOPLE.test, 2), rows={})
    todo = [j for j in product(("random", "identity"), ("identity", "pair"), SEEDS) if "-".join(map(str, j)) not in record["rows"]]
    with ProcessPoolExecutor(2) as pool:
        for job, row in zip(todo, pool.map(measure, *zip(*[(folder, *j) for j in todo]))):
            record["rows"]["-".join(map(str, job))] = row
            OUT.write_text(json.dumps(record, indent=1) + "\n")
            print(*job, row["t2i"], flush=True)
