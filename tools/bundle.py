"""Put the model of a run into the package, for search only and in half precision: python tools/bundle.py runs/synth-small

`CMLFA.from_pretrained("synth-small")` then opens it, from an installed package too.
"""
import shutil
import sys
from pathlib import Path
import torch
import yaml
from cmlfa.model import CMLFA
from cmlfa.share import MODELS

LIMIT = 20 # MB, the whole folder

def main(run):
    run = Path(run)
    config = yaml.safe_load((run / "configs.yaml").read_text(encoding="utf-8"))
    model = CMLFA.from_pretrained(run).for_search()
    folder = MODELS / config["name"]
    model.half().save_pretrained(folder, model_card_kwargs=dict(where=config["name"],
        data=f"SynthPEDES, drawn by `cmlfa_synth data --size full --seed 0` with the numbers of {config['dataset_name']}: no real person is in it. It knows drawn people in drawn streets; on photographs its rankings mean little."))
    for name in ("configs.yaml", "metrics.json", "log.txt"): shutil.copy(run / name, folder / name)
    whole, rounded = CMLFA.from_pretrained(run), CMLFA.from_pretrained(config["name"])
    images = torch.rand(8, 3, *whole.arch.image_size, generator=torch.Generator().manual_seed(0))
    print("largest difference of an embedding by the rounding:", (whole.encode_image(images) - rounded.encode_image(images)).abs().max().item())
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    print(*sorted(f"{f.name} {f.stat().st_size:,}" for f in folder.iterdir()), f"together {size:.1f} MB", sep="\n")
    if size > LIMIT: sys.exit(f"{folder}: more than {LIMIT} MB; train a smaller model.")

if __name__ == "__main__": main(*sys.argv[1:])
