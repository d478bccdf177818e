"""ITC with all pairs of a person as positives, or with the pair alone: a small training of each, three seeds, into benchmarks/itc_positives.json

    python tools/positives.py [trainings at a time]

Drawn people, ITC alone, and the identity sampler, which puts four pairs of a person into a batch: there the two settings differ most. Everything
lies in memory and the last epoch is the one that is tested. Trainings that stand in the file already are kept, so the study can be made in parts.
"""
import json
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from seeds import machine

from cmlfa.batches import Files, IdentityBatches, normalise
from cmlfa.clip import ARCHS, trim
from cmlfa.data import Split, read_splits
from cmlfa.measures import Scores, metrics
from cmlfa.model import CMLFA
from cmlfa.schedule import lr_scale, make_optimizer
from cmlfa.synth import Size, write_synth

OUT, PEOPLE = Path("benchmarks/itc_positives.json"), Size(400, 0, 120, 4, 96, 48)
ARCH = replace(ARCHS["tiny"], image_size=(48, 24), width=64, heads=2, layers=3, dim=64, text_width=64, text_heads=2)
EPOCHS, BATCH, INSTANCES, RATE, WARMUP = 10, 64, 4, 2e-3, 1.
WANTED = [(positives, seed) for seed in (1, 2, 3) for positives in ("identity", "pair")]


def pixels(split: Split) -> torch.Tensor:
    "All images of a split, as bytes."
    return Files(split.paths, ARCH.image_size).__getitems__(range(len(split.paths)))


@torch.no_grad()
def tested(model: CMLFA, split: Split) -> dict:
    "Retrieval both ways."
    model.eval()
    scores = Scores(torch.cat([model.encode_text(split.captions[i:i + 256]) for i in range(0, len(split.captions), 256)]), model.encode_image(normalise(pixels(split))))
    who, whose = split.caption_identities, split.identities
    return dict(t2i={k: round(v, 2) for k, v in metrics(scores, who, whose).items()}, i2t={k: round(v, 2) for k, v in metrics(scores.T, whose, who).items()})


def measure(splits: dict[str, Split], positives: str, seed: int) -> dict:
    "One training, tested."
    start, train = time.process_time(), splits["train"]
    torch.manual_seed(seed)
    model = CMLFA(ARCH, losses="itc", prototypes=0, itc_positives=positives)
    adam = make_optimizer(model.param_groups(RATE, lr_factor=1.))
    images, ids, labels, rates = pixels(train), model.tokenizer(train.captions), train.labels, [g["lr"] for g in adam.param_groups]
    batches, losses = IdentityBatches(labels, BATCH, INSTANCES, seed), []
    for batches.epoch in range(EPOCHS):
        for step, pick in enumerate(batches):
            for g, rate in zip(adam.param_groups, rates): g["lr"] = rate * lr_scale(batches.epoch + step / len(batches), EPOCHS, warmup=WARMUP)
            loss = model(dict(images=normalise(images[train.owner[pick]]), ids=trim(ids[pick]), labels=labels[pick]))["itc"]
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.detach())
    return dict(positives=positives, seed=seed, loss=[round(l.mean().item(), 3) for l in torch.stack(losses).chunk(EPOCHS)], cpu_seconds=round(time.process_time() - start)) | tested(model, splits["test"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    record = json.loads(OUT.read_text()) if OUT.exists() else dict(
        command="python tools/positives.py", date=str(date.today()), machine=machine() + ", one thread", people=dict(train=PEOPLE.train, test=PEOPLE.test), epochs=EPOCHS, batch_size=BATCH,
        num_instance=INSTANCES, versions=f"torch {version('torch')}", chance=round(100 / PEOPLE.test, 2), runs=[])
    missing = [w for w in WANTED if w not in {(r["positives"], r["seed"]) for r in record["runs"]}]
    with tempfile.TemporaryDirectory() as folder:
        write_synth(folder, PEOPLE, progress=False)
        splits = read_splits(folder, "CUHK-PEDES")
        for positives, seed in missing[:int((sys.argv[1:] or [len(missing)])[0])]:
            record["runs"].append(measure(splits, positives, seed))
            print(record["runs"][-1], flush=True)
            OUT.write_text(json.dumps(record, indent=1) + "\n")
