"""What each part of the method is worth: one small training a row and seed, each a line in benchmarks/ablation.jsonl

    python tools/ablate.py                           what there is, what is missing, how long that takes
    python tools/ablate.py cmlfa K1 --seed 1 2 3     these rows, with these seeds
    python tools/ablate.py --all                     everything that is missing, in order
    python tools/ablate.py --cost                    the processor time of a step, row by row, into benchmarks/ablation_cost.json

What stands in the file is not trained again. A training that was interrupted goes on from its last whole epoch, and several processes may work at once.
The data are drawn into data/ablation, the trainings lie in runs/ablation until they are done. NAME@time is the row NAME with as many epochs as fit into
the processor time that CMLFA takes, by the costs measured beforehand.
"""
import argparse
import fcntl
import json
import os
import platform
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import fmean, median

import torch
from seeds import machine

from cmlfa.clip import ARCHS
from cmlfa.config import Config, from_dict, read_yaml
from cmlfa.evaluate import embed_split, evaluate
from cmlfa.loop import Callback, Trainer
from cmlfa.pack import open_splits, write_pack
from cmlfa.support import UserError
from cmlfa.synth import Size, write_synth
from cmlfa.train import make_trainer
from cmlfa.watch import History, TensorBoard, Trackers

ROOT = Path(__file__).resolve().parent.parent
OUT, COST, DATA, RUNS = ROOT / "benchmarks/ablation.jsonl", ROOT / "benchmarks/ablation_cost.json", ROOT / "data/ablation", ROOT / "runs/ablation"
PEOPLE, BATCH, EPOCHS = Size(400, 60, 150, 4, 96, 48), 32, 3
ARCHS["study"] = replace(ARCHS["tiny"], image_size=(48, 24), patch=8, stride=8, width=64, heads=2, layers=3, dim=64, text_width=64, text_heads=2)
SETTINGS = dict(backbone="study", img_size=[48, 24], stride_size=8, lr=2e-3, batch_size=BATCH, num_epoch=EPOCHS, root_dir=str(DATA), output_dir=str(RUNS), num_workers=0, checkpoint_steps=0,
    keep_checkpoints=1, cpu=True, resume=True) # the demo's otherwise
SCALE = f"{PEOPLE.train} people, {EPOCHS} epochs, batches of {BATCH}"
SEEDS, MORE, KEPT = (1, 2, 3), (4, 5), ("R1", "R5", "R10", "mAP")

LADDER = {
    "itc": dict(prototypes=0, loss_names="itc"),
    "itc+id": dict(prototypes=0, loss_names="itc+id"),
    "itc+id+sdm": dict(prototypes=0, loss_names="itc+id+sdm"),
    "irra": dict(prototypes=0),
    "lfa": dict(fusion="latent"),
    "cmlfa": {},
}
LEFT_OUT = {f"without {name}": dict(loss_names="+".join(n for n in ("itc", "sdm", "id", "mlm") if n != name)) for name in ("itc", "id", "sdm", "mlm")}
VARIED = {f"K{k}": dict(prototypes=k) for k in (1, 3, 6, 16)} | {f"L{n}": dict(lfa_layers=n) for n in (0, 1, 6)} \
    | {f: dict(fusion=f) for f in ("concat", "gate")} | {f"flip-{f}": dict(img_aug=True, flip=f, pad=2) for f in ("swap", "skip", "blind")} | {"itc-weight-1": dict(itc_loss_weight=1.), "slow": dict(lr_factor=.25), "usual-start": {}}
ALONE = {"itc+sff": {}, "itc+sff L0": dict(lfa_layers=0), "itc+sff K1": dict(prototypes=1), "itc+sff slow": dict(lr_factor=.25), "itc+sff usual-start": {}}
ALONE = {name: dict(loss_names="itc") | changes for name, changes in ALONE.items()} # the prototypes with no loss but the first
CHEAP = ("itc", "itc+id", "itc+id+sdm", "without mlm") # the others cost about as much as CMLFA
PRICED = LADDER | {row: LEFT_OUT[row] for row in CHEAP if row in LEFT_OUT} # whose step is measured
TIMED = {f"{row}@time": PRICED[row] for row in CHEAP} # as many epochs as fit into CMLFA's time
LONG = {f"{row}@10": PRICED[row] | dict(num_epoch=10) for row in ("cmlfa", "without mlm")} # as many pairs as itc@time sees
ROWS = LADDER | ALONE | LEFT_OUT | TIMED | LONG | VARIED


def usual_start(lfa):
    "PyTorch's own initialisation for the output layers that LFA starts near zero."
    for out in (lfa.feed[-1], *(p for b in lfa.blocks for p in (b.attn.out_proj, b.mlp.c_proj))): out.reset_parameters()


def wanted() -> list[tuple[str, int]]: # row, seed
    "Everything, the most telling first."
    first = [(row, seed) for group in (LADDER, ALONE, LEFT_OUT, TIMED, LONG) for seed in SEEDS for row in group]
    return first + [(row, seed) for seed in SEEDS for row in VARIED] + [(row, seed) for seed in MORE for row in PRICED]


def run_name(row: str, seed: int) -> str:
    "Of its folder and its lock."
    return f"{row.replace(' ', '-')}-{seed}"


def results() -> list[dict]:
    "What has been measured at this scale."
    rows = [json.loads(line) for line in OUT.read_text().splitlines()] if OUT.exists() else []
    return [r for r in rows if r["scale"] == SCALE]


@contextmanager
def holding(file: Path, wait: bool):
    "A lock that ends with the process; yields whether it was free."
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w") as f:
        try: fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError: yield False
        else: yield True


def record(result: dict):
    "One line more, whole, unless another process has just written it."
    with holding(RUNS / "results.lock", wait=True):
        if any((r["row"], r["seed"]) == (result["row"], result["seed"]) for r in results()): return
        OUT.parent.mkdir(exist_ok=True)
        with open(OUT, "a") as f:
            f.write(json.dumps(result) + "\n")
            f.flush()
            os.fsync(f.fileno())


def changes_of(row: str) -> dict:
    "What a row changes; the epochs of NAME@time are those that fit into CMLFA's time."
    if row not in TIMED: return ROWS[row]
    return ROWS[row] | dict(num_epoch=int(EPOCHS * costs()["cmlfa"] / costs()[row.removesuffix("@time")]))


def costs() -> dict[str, float]:
    "Processor seconds of a step, by row."
    if not COST.exists(): raise UserError(f"{COST}: is missing; run python tools/ablate.py --cost, with nothing else at work.")
    return json.loads(COST.read_text())["seconds_a_step"]


class Curve(Callback):
    "The test split after each epoch, and the processor time that training alone has taken. Nothing is ever chosen by it."
    def __init__(self, cfg, folder: Path):
        splits, images = open_splits(cfg.root_dir, cfg.dataset_name, cfg.img_size)
        self.split, self.images, self.file = splits["test"], images["test"], History(folder / "curve.jsonl")

    def before_fit(self, t):
        kept = [r for r in self.file.rows() if r["position"] <= t.position] # what came later is done again
        self.file.add(kept, "w")

    def before_epoch(self, t): self.start = time.process_time()

    def stamp(self, t, **more):
        self.file.add([dict(position=t.position, epoch=t.epoch, cpu=round(time.process_time() - self.start, 2)) | more])

    def after_stop(self, t): self.stamp(t)

    def after_epoch(self, t):
        self.stamp(t)
        scores = embed_split(t.plain(), self.split, self.images, t.cfg.test_batch_size)
        self.file.add([dict(position=t.position, epoch=t.epoch, cpu=0.) | {"test": short(evaluate(scores, self.split))}])


def short(report: dict) -> dict:
    "Both directions, two decimals."
    return {way: {k: round(report[way][k], 2) for k in KEPT} for way in ("t2i", "i2t")}


def config_of(row: str, seed: int, changes: dict) -> Config:
    "The demo's settings, this study's, the row's."
    return from_dict(read_yaml(ROOT / "configs/demo.yaml") | SETTINGS | changes | dict(name=run_name(row, seed), seed=seed), row)


def trainer_of(row: str, seed: int, changes: dict) -> Trainer:
    "Where this row's training stands."
    cfg = config_of(row, seed, changes)
    trainer, _ = make_trainer(cfg, progress=False)
    if row.endswith("usual-start") and not trainer.step: usual_start(trainer.model.lfa)
    kept = [c for c in trainer.callbacks if not isinstance(c, (TensorBoard, Trackers))]
    trainer.callbacks = [Curve(cfg, trainer.folder), *kept] # first, so that its clock stops before val is searched
    return trainer


def measure(row: str, seed: int, changes: dict) -> dict:
    "One training, and what came of it."
    trainer = trainer_of(row, seed, changes)
    trainer.fit()
    val, curve, n = History(trainer.folder / "history.jsonl").rows(), History(trainer.folder / "curve.jsonl").rows(), trainer.cfg.num_epoch
    epochs = [dict(cpu=round(sum(r["cpu"] for r in curve if r["epoch"] == e), 2), val=next(short(r) for r in val if "t2i" in r and r["epoch"] == e),
                   test=next(r["test"] for r in curve if "test" in r and r["epoch"] == e)) for e in range(n)]
    steps = [r for r in val if "loss" in r]
    losses = {name: [round(fmean(r[name] for r in steps[k:k + 10]), 3) for k in range(0, len(steps), 10)] for name in trainer.cfg.losses}
    best = max(range(n), key=lambda e: (epochs[e]["val"]["t2i"]["R1"], -e))
    return dict(row=row, seed=seed, changes=changes, scale=SCALE, pairs=trainer.step * BATCH, parameters=sum(p.numel() for p in trainer.model.parameters()),
        epoch=best + 1, test=epochs[best]["test"], epochs=epochs, losses=losses) | where()


def overview() -> str:
    "What there is, and what is missing."
    found = {(r["row"], r["seed"]): r for r in results()}
    lines = [f"{SCALE}; Rank-1 on test, by seed"]
    for row in ROWS: lines.append(f"{row:16s}" + "".join(f"{found[row, s]['test']['t2i']['R1']:8.2f}" if (row, s) in found else "       -" for s in SEEDS + MORE))
    missing = [w for w in wanted() if w not in found]
    longest = sum(ROWS[row].get("num_epoch", EPOCHS) for row, _ in missing) * (PEOPLE.train * PEOPLE.images * 2 // BATCH) * costs()["cmlfa"] / 60 # two captions an image
    return "\n".join(lines + [f"{len(found)} trainings are there, {len(missing)} are missing, for which one core trains {longest:.0f} minutes at most"])


def data():
    "Draw the people and pack them, unless they are there."
    with holding(RUNS / "data.lock", wait=True):
        write_pack(write_synth(DATA, PEOPLE, workers=1, progress=False).parent, "CUHK-PEDES", ARCHS["study"].image_size, workers=1)


def cost(steps: int = 10):
    "Processor seconds of a training step of each row, the rows taking turns; the first two steps of each are not counted."
    data()
    trainers, spent = {row: trainer_of(row, 0, changes) for row, changes in PRICED.items()}, {row: [] for row in PRICED}
    batches = {row: iter(t.loader) for row, t in trainers.items()}
    for _ in range(steps + 2):
        for row, t in trainers.items():
            batch, start = next(batches[row]), time.process_time()
            t.train_step(t.prepare(batch))
            spent[row].append(time.process_time() - start)
    result = dict(command="python tools/ablate.py --cost", scale=SCALE, seconds_a_step={r: round(median(s[2:]), 4) for r, s in spent.items()},
        slowest={r: round(max(s[2:]), 4) for r, s in spent.items()}, fastest={r: round(min(s[2:]), 4) for r, s in spent.items()}, steps=steps) | where()
    COST.write_text(json.dumps(result, indent=1) + "\n")
    for row in PRICED: shutil.rmtree(RUNS / run_name(row, 0))


def where() -> dict:
    "Of every measurement."
    return dict(date=str(date.today()), machine=machine() + ", one thread", versions=f"Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in ("torch", "timm", "cmlfa")))


def study(jobs: list[tuple[str, int]]):
    "Train what is missing of these."
    data()
    for row, seed in jobs:
        with holding(RUNS / f"{run_name(row, seed)}.lock", wait=False) as free:
            if not free or any((r["row"], r["seed"]) == (row, seed) for r in results()): continue
            start = time.time()
            result = measure(row, seed, changes_of(row))
            record(result)
            shutil.rmtree(RUNS / run_name(row, seed))
            print(f"{row}, seed {seed}: Rank-1 {[e['val']['t2i']['R1'] for e in result['epochs']]} on val, {result['test']['t2i']['R1']} on test, {time.time() - start:.0f} s; training took {sum(e['cpu'] for e in result['epochs']):.0f} processor seconds", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to train; none: say what there is")
    parser.add_argument("--seed", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--all", action="store_true", help="every row that is missing")
    parser.add_argument("--cost", action="store_true", help="measure what a step costs")
    a = parser.parse_args()
    if wrong := [r for r in a.rows if r not in ROWS]: sys.exit(f"{wrong[0]!r} is no row; choose from: {', '.join(ROWS)}")
    torch.set_num_threads(1)
    if a.cost: cost()
    if a.rows or a.all: study([(r, s) for r, s in (wanted() if a.all else product(a.rows, a.seed))])
    print(overview())


if __name__ == "__main__":
    try: main()
    except UserError as e: sys.exit(str(e))
    except KeyboardInterrupt: sys.exit("stopped; the same command goes on")
