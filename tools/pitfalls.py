"""Small trainings that carry one bad habit each, for notebook 16_pitfalls: into benchmarks/pitfalls.json

    python tools/pitfalls.py               what there is and what is missing
    python tools/pitfalls.py leak          prototypes whose attention runs across the batch, or stays within the sample; tested in several orders and batches
    python tools/pitfalls.py masks         captions with holes, or whole ones, in the loss that compares images and captions
    python tools/pitfalls.py weights       a training that goes on at a small rate, with weights that are kept in fp16, or in float32 beside an fp16 copy
    python tools/pitfalls.py flips         mirrored images, and what becomes of 'left' and 'right' in their captions
    python tools/pitfalls.py --all         all four

Drawn people, ITC alone, everything in memory. `leak` and `weights` put fresh prototypes on the bundled model's encoders, which stay as they are; `masks` trains
a fresh text encoder to meet that model's image vectors; `flips` adds to its vectors what a small network sees in an image and which words a caption has. So the bundled model has to run only once, and the level is that of a trained model. Every training is
measured on test after each epoch, and the first two on val too, and nothing is chosen by that: the notebook chooses, in several ways, and compares. What
stands in the file is not trained again.
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
import torch.nn.functional as F
from seeds import machine
from torch import nn

from cmlfa.batches import FLIPS, Files, IdentityBatches, RandomBatches, normalise, random_flip
from cmlfa.clip import ARCHS, TextEncoder, end_positions, text_mask, trim
from cmlfa.data import Split, read_splits
from cmlfa.lfa import LFA, attend
from cmlfa.losses import itc_loss
from cmlfa.masking import mask_tokens
from cmlfa.measures import Scores, per_query
from cmlfa.model import CMLFA
from cmlfa.schedule import lr_scale, make_optimizer
from cmlfa.sff import fuse
from cmlfa.synth import Size, write_synth
from cmlfa.tokenizer import Tokenizer

OUT, PEOPLE, DRAWN = Path("benchmarks/pitfalls.json"), Size(300, 120, 120, 4, 96, 48), 16 # the seed that people are drawn with: not those that the bundled model knows
BATCH, SEEDS, SIZES, SHUFFLES = 64, (1, 2, 3), (1, 2, 4, 8, 16, 64, 512), 2 # SIZES: of the batches that a test is embedded in
HEAD = dict(epochs=8, rate=1e-3, warmup=.5)
READER, READS = dict(epochs=6, rate=3e-3, warmup=.5), replace(ARCHS["tiny"], text_width=64, text_heads=2, text_layers=1)
UNCHOSEN = replace(PEOPLE, val=0) # for `weights` and `flips`, where nothing is chosen; `read_splits` sets 15 of the people aside
KEPT = dict(start_epochs=1, start_rate=1e-3, epochs=6, rate=1.3e-5) # a short training as usual, then a small, steady rate: what 1e-5 is to the weights of CLIP
MIRRORS = dict(epochs=6, rate=2e-3, warmup=.5, sided=32) # sided: pairs of a batch whose captions name a side, which is far more than chance would draw
LEAK = {"within": (False, "random"), "across": (True, "random"), "across, identity sampler": (True, "identity")} # across the batch?, sampler
MASKS = {"whole": False, "masked": True}
WEIGHTS = {"float32 master": True, "fp16": False}
STUDIES = {"leak": LEAK, "masks": MASKS, "weights": WEIGHTS, "flips": FLIPS}


class Across(LFA):
    "LFA with the published order of the axes: an answer hears the same answer of all other samples of the batch."
    def forward(self, tokens, mask=None):
        z = attend(self.prototypes, tokens, mask) @ tokens
        z = (z + self.feed(z)).transpose(0, 1) # K x B x D, and the blocks take the first axis for the samples
        for block in self.blocks: z = block(z)
        return z.transpose(0, 1)


class Words(nn.Module):
    "An embedding of the words that occur; all others share one row. The full table would take most of the time of so small a training."
    def __init__(self, ids: torch.Tensor, vocab: int, width: int):
        super().__init__()
        known = ids.unique()
        self.row = torch.zeros(vocab, dtype=torch.long)
        self.row[known] = torch.arange(1, len(known) + 1)
        self.table = nn.Embedding(len(known) + 1, width)
        nn.init.normal_(self.table.weight, std=0.5)

    def forward(self, ids): return self.table(self.row[ids])


class Side:
    "Images or captions after their encoder: the global feature, the tokens, which of them count."
    def __init__(self, whole, parts, mask=None): self.whole, self.parts, self.mask = whole, parts, mask

    def fused(self, lfa: LFA, i) -> torch.Tensor: # of some of them, together in one batch
        return fuse(self.whole[i], lfa(self.parts[i], None if self.mask is None else self.mask[i]))

    @torch.no_grad()
    def embed(self, lfa: LFA, order: torch.Tensor, batch: int) -> torch.Tensor: # unit vectors, in the stored order
        out = torch.empty_like(self.whole)
        for i in order.split(batch): out[i] = self.fused(lfa, i)
        return F.normalize(out, dim=-1)


def captions_of(model: CMLFA, split: Split) -> tuple[torch.Tensor, torch.Tensor]: # token ids: as written, with 'left' and 'right' exchanged
    ids, words = trim(model.tokenizer(split.captions, truncate=True)), (model.tokenizer.word_id("left"), model.tokenizer.word_id("right"))
    return ids, random_flip(torch.zeros(len(ids), 3, 1, 1, dtype=torch.uint8), ids, words, torch.zeros(len(ids)))[1]


@torch.no_grad()
def encoded(model: CMLFA, split: Split, mirrored: bool = False) -> tuple[Side, Side]: # captions, images
    "A split, after encoders that do not change any more; or its mirror image, with the words exchanged."
    ids, pictures = captions_of(model, split)[mirrored], Files(split.paths, model.arch.image_size).__getitems__(range(len(split.paths)))
    if mirrored: pictures = pictures.flip(-1)
    words = torch.cat([model.text_encoder(x) for x in ids.split(64)])
    patches = torch.cat([model.image_encoder(normalise(x)) for x in pictures.split(64)])
    return Side(words[torch.arange(len(ids)), end_positions(ids)], words, text_mask(ids)), Side(patches[:, 0], patches[:, 1:])


def hits(split: Split, texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor: # for each caption: 1 where the image that comes first is right
    return per_query(Scores(texts, images), split.caption_identities, split.identities)["R1"]


def percent(found: torch.Tensor) -> float: return round(100 * found.mean().item(), 2)


def by_person(split: Split, found: torch.Tensor) -> str: # a digit a person: how many of the eight captions found somebody right
    return "".join(str(round(found[split.caption_identities == p].sum().item())) for p in split.identities.unique())


def optimiser(groups, settings: dict):
    "Adam, and a function that sets the rate for a moment of the training."
    adam = make_optimizer(groups)
    base = [g["lr"] for g in adam.param_groups]
    def at(epoch):
        for g, rate in zip(adam.param_groups, base): g["lr"] = rate * lr_scale(epoch, settings["epochs"], warmup=settings["warmup"])
    return adam, at


def move(adam, loss) -> float:
    adam.zero_grad()
    loss.backward()
    adam.step()
    return loss.item()


def batches_of(split: Split, sampler: str, seed: int):
    return RandomBatches(len(split.captions), BATCH, seed) if sampler == "random" else IdentityBatches(split.labels, BATCH, 4, seed)


def orders(lfa: LFA, split: Split, sides: tuple[Side, Side]) -> dict: # Rank-1 by batch size
    "The same weights and the same test, embedded in other company; where company does not matter, three batch sizes show it."
    sizes = SIZES if isinstance(lfa, Across) else (1, 8, 512)
    def rank1(batch, shuffle=None):
        dice = None if shuffle is None else torch.Generator().manual_seed(shuffle)
        return percent(hits(split, *(s.embed(lfa, torch.arange(len(s.whole)) if dice is None else torch.randperm(len(s.whole), generator=dice), batch) for s in sides)))
    return dict(stored={n: rank1(n) for n in sizes}, shuffled={n: round(sum(rank1(n, s) for s in range(SHUFFLES)) / SHUFFLES, 2) for n in sizes[1:]})


def train_head(splits: dict[str, Split], sides: dict, seed: int, across: bool, sampler: str) -> dict:
    "Prototypes on encoders that stay as they are."
    start, split, (texts, images) = time.process_time(), splits["train"], sides["train"]
    torch.manual_seed(seed)
    lfa = (Across if across else LFA)(texts.whole.shape[1], prototypes=4, layers=2, heads=4)
    (adam, at), batches, epochs = optimiser([dict(params=list(lfa.parameters()), lr=HEAD["rate"])], HEAD), batches_of(split, sampler, seed), []
    for batches.epoch in range(HEAD["epochs"]):
        lfa.train()
        losses = []
        for step, pick in enumerate(batches):
            at(batches.epoch + step / len(batches))
            i = torch.tensor(pick)
            losses.append(move(adam, itc_loss(images.fused(lfa, split.owner[i]), texts.fused(lfa, i), split.labels[i])))
        lfa.eval()
        found = {s: hits(splits[s], *(x.embed(lfa, torch.arange(len(x.whole)), 512) for x in sides[s])) for s in ("val", "test")}
        epochs.append(dict(loss=round(sum(losses) / len(losses), 3), val=percent(found["val"]), test=percent(found["test"]), people=by_person(splits["test"], found["test"])))
    return dict(seed=seed, cpu_seconds=round(time.process_time() - start), epochs=epochs, orders=orders(lfa, splits["test"], sides["test"]))


def train_reader(splits: dict[str, Split], vectors: dict, seed: int, masked: bool) -> dict: # vectors: of the images, by split
    "A text encoder from nothing, for images that stay where they are; with holes in the captions of the training, or without."
    start, split = time.process_time(), splits["train"]
    torch.manual_seed(seed)
    reader, tokenize = TextEncoder(READS), Tokenizer(READS.context)
    ids = {s: trim(tokenize(x.captions, truncate=True)) for s, x in splits.items()}
    reader.token_embedding = Words(torch.cat([x.flatten() for x in ids.values()]), READS.vocab, READS.text_width)
    read = lambda x: reader(x)[torch.arange(len(x)), end_positions(x)]
    (adam, at), batches, dice, epochs = optimiser([dict(params=list(reader.parameters()), lr=READER["rate"])], READER), batches_of(split, "random", seed), torch.Generator().manual_seed(seed), []
    for batches.epoch in range(READER["epochs"]):
        losses = []
        for step, pick in enumerate(batches):
            at(batches.epoch + step / len(batches))
            said = trim(ids["train"][pick])
            if masked: said = mask_tokens(said, dice)[0]
            losses.append(move(adam, itc_loss(vectors["train"][split.owner[pick]], read(said), split.labels[pick])))
        with torch.no_grad(): found = {s: hits(splits[s], F.normalize(read(ids[s]), dim=-1), vectors[s]) for s in ("val", "test")}
        epochs.append(dict(loss=round(sum(losses) / len(losses), 3), val=percent(found["val"]), test=percent(found["test"]), people=by_person(splits["test"], found["test"])))
    return dict(seed=seed, cpu_seconds=round(time.process_time() - start), epochs=epochs)


def head(width: int) -> LFA: # prototypes and their feed-forward block, without a transformer: cheap, so many steps can be made
    return LFA(width, prototypes=4, layers=0, heads=4)


def train_kept(splits: dict[str, Split], sides: dict, seed: int, master: bool) -> dict:
    """A head that is trained a little goes on at a small rate. It computes with weights rounded to fp16 in both rows; what differs is where the steps are added up.

    Rounded: all but the LayerNorms, as published. Gradients and Adam are float32 in both rows, which is kinder than the published way."""
    start, split, (texts, images) = time.process_time(), splits["train"], sides["train"]
    torch.manual_seed(seed)
    lfa, batches, epochs = head(texts.whole.shape[1]), RandomBatches(len(split.captions), BATCH, seed), []
    adam, held = make_optimizer([dict(params=list(lfa.parameters()), lr=KEPT["start_rate"])]), [p for m in lfa.modules() if not isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)]
    masters = began = None
    def note(loss): # after an epoch
        lfa.eval()
        found = hits(splits["test"], *(x.embed(lfa, torch.arange(len(x.whole)), 512) for x in sides["test"]))
        moved = torch.cat([(p.detach() != b).flatten() for p, b in zip(held, began)])
        way = torch.cat([(p.detach() - b).flatten() for p, b in zip(held, began)]).norm() / torch.cat([b.flatten() for b in began]).norm()
        epochs.append(dict(loss=loss, test=percent(found), changed=percent(moved.float()), way=round(way.item(), 5)))
    @torch.no_grad()
    def halve(): # the matrices become what fp16 can hold
        for p in held: p.copy_(p.half())
    for batches.epoch in range(KEPT["start_epochs"] + KEPT["epochs"]):
        if batches.epoch == KEPT["start_epochs"]:
            masters = [p.detach().clone() for p in held]
            halve()
            began, adam = [p.detach().clone() for p in held], make_optimizer([dict(params=list(lfa.parameters()), lr=KEPT["rate"])])
            note(None)
        lfa.train()
        losses = []
        for pick in batches:
            i = torch.tensor(pick)
            loss = itc_loss(images.fused(lfa, split.owner[i]), texts.fused(lfa, i), split.labels[i])
            adam.zero_grad()
            loss.backward()
            losses.append(loss.item())
            with torch.no_grad():
                if master and masters:
                    for p, m in zip(held, masters): p.copy_(m)
                adam.step()
                if master and masters:
                    for p, m in zip(held, masters): m.copy_(p)
                if masters: halve()
        if masters: note(round(sum(losses) / len(losses), 3))
    sizes = torch.cat([b.abs().flatten() for b in began])
    return dict(seed=seed, cpu_seconds=round(time.process_time() - start), steps=len(batches) * KEPT["epochs"], weights=len(sizes), middle_size=round(sizes.median().item(), 4), epochs=epochs)


class Glance(nn.Module):
    "What a small network adds to the vector of each image, and a bag of words to that of each caption."
    def __init__(self, ids: torch.Tensor, vocab: int, dim: int): # all captions, whose words get a vector each
        super().__init__()
        self.words, out = Words(ids, vocab, dim), nn.Linear(32 * 18, dim)
        self.look = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Dropout(.3), out)
        nn.init.normal_(self.words.table.weight, std=.01)
        nn.init.normal_(out.weight, std=.01)

    def images(self, vectors, pictures): return vectors + self.look(normalise(pictures))
    def captions(self, vectors, ids): return vectors + (self.words(ids) * text_mask(ids)[..., None]).sum(1)


def train_mirror(splits: dict[str, Split], seen: dict, seed: int, how: str) -> dict: # seen: by split, what `mirrored_too` gives
    "The bundled model's vectors and what a `Glance` adds to them, trained with mirrored images: with captions that lie, that follow, or whose images are left as they are."
    start, split = time.process_time(), splits["train"]
    (pictures, views), (ids, texts), sided = seen["train"]
    named, n = sided.nonzero()[:, 0], len(split.captions)
    torch.manual_seed(seed)
    glance, dice, steps, epochs = Glance(torch.cat([x[1][0].flatten() for x in seen.values()]), ARCHS["tiny"].vocab, texts.shape[1]), torch.Generator().manual_seed(seed), n // BATCH, []
    adam, at = optimiser([dict(params=list(glance.parameters()), lr=MIRRORS["rate"])], MIRRORS)
    for epoch in range(MIRRORS["epochs"]):
        glance.train()
        losses = []
        for step in range(steps):
            at(epoch + step / steps)
            i = torch.cat([named[torch.randint(len(named), (MIRRORS["sided"],), generator=dice)], torch.randint(n, (BATCH - MIRRORS["sided"],), generator=dice)])
            flip = torch.rand(BATCH, generator=dice) < .5
            if how == "skip": flip = flip & ~sided[i]
            v, t = split.owner[i] + len(split.paths) * flip, i + n * flip if how == "swap" else i
            losses.append(move(adam, itc_loss(glance.images(views[v], pictures[v]), glance.captions(texts[t], ids[t]), i + n * flip))) # the own pair alone is right, as published
        glance.eval()
        (photos, sights), (asked, said), named_too = seen["test"]
        m, own = len(splits["test"].paths), splits["test"].owner
        with torch.no_grad(): v, t = F.normalize(glance.images(sights, photos), dim=-1), F.normalize(glance.captions(said, asked), dim=-1)[:len(own)]
        found, told = hits(splits["test"], t, v[:m]), (t * v[own]).sum(1) > (t * v[own + m]).sum(1) # does the caption fit its own image better than the mirror image?
        epochs.append(dict(loss=round(sum(losses) / len(losses), 3), test=percent(found), sided=percent(found[named_too]), told=percent(told[named_too].float())))
    return dict(seed=seed, cpu_seconds=round(time.process_time() - start), sided=dict(train=len(named), test=int(named_too.sum())), epochs=epochs)


def mirrored_too(model: CMLFA, split: Split) -> tuple: # pictures and vectors of images, ids and vectors of captions, each followed by its mirror image; which captions name a side
    ids, pictures = captions_of(model, split), Files(split.paths, model.arch.image_size).__getitems__(range(len(split.paths)))
    sides = [encoded(model, split, mirrored) for mirrored in (False, True)]
    vectors = [torch.cat([x.embed(model.lfa, torch.arange(len(x.whole)), 512) for x in both]) for both in zip(*sides)]
    return (torch.cat([pictures, pictures.flip(-1)]), vectors[1]), (torch.cat(ids), vectors[0]), (ids[0] != ids[1]).any(1)


def runs_of(study: str, wanted: list[tuple[str, int]], folder: str):
    "The trainings of a study, one after another."
    write_synth(folder, UNCHOSEN if study in ("weights", "flips") else PEOPLE, seed=DRAWN, workers=1, progress=False)
    splits, model = read_splits(folder, "CUHK-PEDES"), CMLFA.from_pretrained("synth-small").eval()
    if study == "flips": seen = {s: mirrored_too(model, x) for s, x in splits.items() if s != "val"}
    else: sides = {s: encoded(model, x) for s, x in splits.items()}
    if study == "leak": train = lambda name, seed: train_head(splits, sides, seed, *LEAK[name])
    if study == "masks":
        vectors = {s: images.embed(model.lfa, torch.arange(len(images.whole)), 512) for s, (_, images) in sides.items()}
        train = lambda name, seed: train_reader(splits, vectors, seed, MASKS[name])
    if study == "weights": train = lambda name, seed: train_kept(splits, sides, seed, WEIGHTS[name])
    if study == "flips": train = lambda name, seed: train_mirror(splits, seen, seed, name)
    for name, seed in wanted: yield name, train(name, seed)


def stored() -> dict:
    "What the file holds, or a fresh one would."
    record = json.loads(OUT.read_text()) if OUT.exists() else dict(
        command="python tools/pitfalls.py --all", date=str(date.today()), machine=machine() + ", one thread", versions=f"torch {version('torch')}", seeds=SEEDS,
        people=dict(train=PEOPLE.train, val=PEOPLE.val, test=PEOPLE.test), batch_size=BATCH, chance=round(100 / PEOPLE.test, 2),
        leak=dict(HEAD, rows={n: [] for n in LEAK}), masks=dict(READER, rows={n: [] for n in MASKS}))
    for study, settings in (("weights", KEPT), ("flips", MIRRORS)): record.setdefault(study, dict(settings, people=dict(train=UNCHOSEN.train - 15, test=UNCHOSEN.test), rows={n: [] for n in STUDIES[study]}))
    return record


def main(names: list[str]):
    for study in names:
        rows = stored()[study]["rows"]
        wanted = [(name, seed) for seed in SEEDS for name in STUDIES[study] if seed not in {r["seed"] for r in rows[name]}]
        if not wanted: continue
        with tempfile.TemporaryDirectory() as folder:
            for name, run in runs_of(study, wanted, folder):
                record = stored() # anew: another process may have written meanwhile
                record[study]["rows"][name] = sorted([*record[study]["rows"][name], run], key=lambda r: r["seed"])
                OUT.write_text(json.dumps(record, indent=1) + "\n")
                print(f"{name}, seed {run['seed']}: Rank-1 on test {[e['test'] for e in run['epochs']]}, {run['cpu_seconds']} s", run.get("orders", run["epochs"][-1]), flush=True)
    record = stored()
    for study in STUDIES:
        for name, runs in record[study]["rows"].items(): print(f"{study}: {name:26s}" + "".join(f"{r['epochs'][-1]['test']:8.2f}" for r in runs) + "       -" * (len(SEEDS) - len(runs)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = sys.argv[1:]
    if wrong := [a for a in asked if a not in (*STUDIES, "--all")]: sys.exit(f"{wrong[0]!r} is no study; choose from {', '.join(STUDIES)}, or --all.")
    main(list(STUDIES) if "--all" in asked else asked)
