"""What each part does early in training at the demo's size: one run a row, two epochs each, into benchmarks/demo_parts.json

    python tools/parts.py [seed]

Rows that stand in the file already are kept, so an interrupted study goes on where it stopped.
"""
import json
import re
import shutil
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from seeds import machine, val_curve

from cmlfa.config import Config, load_config
from cmlfa.protocol import test_run
from cmlfa.train import make_trainer

OUT, EPOCHS = Path("benchmarks/demo_parts.json"), 2
ROWS = {
    "SDM alone": dict(loss_names="sdm", prototypes=0),
    "ITC alone (plain fine-tuned CLIP)": dict(loss_names="itc", prototypes=0),
    "ITC + SDM": dict(loss_names="itc+sdm", prototypes=0),
    "ITC + prototypes": dict(loss_names="itc"),
    "ITC + prototypes, usual start": dict(loss_names="itc"),
    "all four losses, no prototypes (IRRA)": dict(prototypes=0),
    "all (CMLFA)": {},
}


def usual_start(lfa):
    "PyTorch's own initialisation for the output layers that LFA starts near zero."
    for out in (lfa.feed[-1], *(p for b in lfa.blocks for p in (b.attn.out_proj, b.mlp["c_proj"]))): out.reset_parameters()


def measure(name: str, changes: dict, seed: int) -> dict:
    "Train one row and test it."
    cfg = Config(**vars(load_config("configs/demo.yaml")) | changes | dict(name="part-" + re.sub(r"\W+", "-", name), seed=seed, num_epoch=EPOCHS))
    shutil.rmtree(Path(cfg.output_dir) / cfg.name, ignore_errors=True) # what an interrupted study left
    trainer, _ = make_trainer(cfg, progress=False)
    if name.endswith("usual start"): usual_start(trainer.model.lfa)
    trainer.fit()
    report = test_run(trainer.folder, cfg)
    return dict(changes=changes, val_R1=val_curve(trainer.folder), epoch=report["epoch"], t2i={k: round(v, 2) for k, v in report["t2i"].items()})


if __name__ == "__main__":
    seed = int((sys.argv[1:] or ["1"])[0])
    record = json.loads(OUT.read_text()) if OUT.exists() else dict(
        command=f"python tools/parts.py {seed}", date=str(date.today()), machine=machine(), seed=seed, epochs=EPOCHS,
        versions=", ".join(f"{p} {version(p)}" for p in ("torch", "timm", "cmlfa")), rows={})
    for name, changes in ROWS.items():
        if name in record["rows"]: continue
        record["rows"][name] = measure(name, changes, seed)
        OUT.write_text(json.dumps(record, indent=1) + "\n")
        print(name, record["rows"][name]["val_R1"], record["rows"][name]["t2i"])
