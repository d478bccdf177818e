"""Weights, checkpoints, settings and stores from strangers: nothing in them is run, nothing outside is opened, and each is refused in one sentence."""
import io
import json
import os
import pickle
import re
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cmlfa.config import load_config
from cmlfa.model import CMLFA
from cmlfa.port import main as convert
from cmlfa.store import Store
from cmlfa.support import UserError
from cmlfa.weights import read_tensors


class Trap:
    "A pickle that makes a folder when it is read."
    def __init__(self, place): self.place = str(place)
    def __reduce__(self): return os.mkdir, (self.place,)


def zipped(**files):
    "A zip archive."
    with zipfile.ZipFile(out := io.BytesIO(), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        for name, data in files.items(): z.writestr(f"archive/{name.replace('__', '.')}", data)
    return out.getvalue()


def saved(held):
    "As torch.save writes it."
    torch.save(held, out := io.BytesIO())
    return out.getvalue()


def safetensors(header, data=b"", length=None):
    "A file with any header, and any claim of its length."
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
WEIGHTS = { # name: bytes, given the place of a trap
    "code.pt": lambda trap: pickle.dumps({"state_dict": Trap(trap)}),
    "code, saved by torch.pt": lambda trap: saved({"state_dict": {"w": torch.zeros(2), "trap": Trap(trap)}}),
    "code in a TorchScript archive.pt": lambda trap: zipped(data__pkl=pickle.dumps(Trap(trap)), constants__pkl=pickle.dumps(())),
    "a zip bomb.pt": lambda trap: zipped(data__pkl=pickle.dumps({}), data=bytes(500_000_000)),
    "a zip bomb that looks like TorchScript.pt": lambda trap: zipped(data__pkl=pickle.dumps({}), constants__pkl=bytes(500_000_000)),
    "one number for a billion.pt": lambda trap: saved({"w": torch.zeros(1).expand(10**9)}),
    "one number for a billion.bin": lambda trap: saved({"model": {"w": torch.zeros(1).expand(10**5, 10**5)}}),
    "empty.pt": lambda trap: b"",
    "no archive.pt": lambda trap: b"PK\3\4" + bytes(90),
    "a header of an exabyte.safetensors": lambda trap: safetensors({"w": ONE}, bytes(4), length=2**60),
    "a header that ends early.safetensors": lambda trap: safetensors({"w": ONE}, bytes(4), length=9),
    "a tensor beyond the end.safetensors": lambda trap: safetensors({"w": ONE | {"shape": [10**9], "data_offsets": [0, 4 * 10**9]}}, bytes(4)),
    "a tensor larger than its room.safetensors": lambda trap: safetensors({"w": ONE | {"shape": [10**12]}}, bytes(4)),
    "two tensors in one place.safetensors": lambda trap: safetensors({"v": ONE, "w": ONE}, bytes(4)),
    "a negative shape.safetensors": lambda trap: safetensors({"w": ONE | {"shape": [-1]}}, bytes(4)),
    "no header.safetensors": lambda trap: safetensors(b"\xff" * 40),
    "a deep header.safetensors": lambda trap: safetensors(b"[" * 100_000),
}


def refused(fn, file):
    "The sentence."
    with pytest.raises(UserError) as e: fn()
    assert str(e.value).startswith(str(file)) and "\n" not in str(e.value) and len(str(e.value)) < 500 + 2 * len(str(file)), e.value
    return str(e.value)


@contextmanager
def little_memory(most):
    "Nothing in here takes more memory than so many bytes, not even for a moment; looked at where the system tells."
    def kilobytes(what): return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    try: Path("/proc/self/clear_refs").write_text("5") # the peak begins anew
    except OSError: return (yield)
    before = kilobytes("VmRSS")
    yield
    assert 1024 * (kilobytes("VmHWM") - before) < most


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_from_strangers(name, tmp_path, capsys):
    file, trap = tmp_path / name, tmp_path / "it ran"
    file.write_bytes(WEIGHTS[name](trap))
    with little_memory(150e6): refuse_weights(file, trap, tmp_path, capsys)


def refuse_weights(file, trap, tmp_path, capsys):
    "By each way in."
    refused(lambda: read_tensors(file), file)
    refused(lambda: CMLFA.load(file), file) # as a checkpoint
    with pytest.raises(SystemExit) as e: convert([str(file), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert e.value.code == 2 and str(file) in said and said.count("\n") == 1 and not (tmp_path / "out").exists(), said
    assert not trap.exists()


def test_weights_that_name_files_elsewhere(tmp_path):
    (tmp_path / "secret").mkdir()
    save_file({"w": torch.zeros(1)}, tmp_path / "secret/model.safetensors")
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(model_type="clip", text_config={}, vision_config={})))
    for place in (str(tmp_path / "secret/model.safetensors"), "../secret/model.safetensors"):
        (folder / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map={"w": place})))
        from cmlfa.weights import read_weights
        assert "there is no such file of weights" in refused(lambda: read_weights(folder), folder)


HEADERS = { # what a checkpoint of this project might say of itself
    "no settings": {}, "no object": {"settings": "7"}, "no JSON": {"settings": "{"}, "another class": {"settings": json.dumps({"arch": {"__class__": "os.system"}})},
    "unknown sizes": {"settings": json.dumps({"arch": {"image_size": [96, 48], "part": 3}})}, "sizes of the wrong kind": {"settings": json.dumps({"arch": {"image_size": "96 48", "width": "os"}, "identities": [1]})},
    "sizes below nothing": {"settings": json.dumps({"arch": {"image_size": [-96, 48]}})}, "a million layers": {"settings": json.dumps(dict(arch=dict(image_size=[96, 48], layers=10**6)))}, "a model of terabytes": {"settings": json.dumps(dict(arch=dict(image_size=[96, 48], patch=12, stride=12, width=10**6, heads=4), prototypes=10**9))},
    "numbers beyond all": {"settings": json.dumps(dict(arch=dict(image_size=[96, 48], patch=12, stride=12, width=10**30, layers=0, heads=10**30)))}, "another model": {"settings": json.dumps(dict(arch=dict(image_size=[96, 48], patch=12, stride=12, width=32, layers=1, heads=2, dim=32)))},
}


@pytest.mark.parametrize("name", HEADERS)
def test_checkpoints_that_describe_no_model(name, tmp_path):
    file = tmp_path / "best.safetensors"
    save_file({"model.w": torch.zeros(1)}, file, metadata=HEADERS[name])
    with little_memory(150e6): refused(lambda: CMLFA.load(file), file)


SETTINGS = {
    "a tag that runs a command": "name: !!python/object/apply:os.system ['touch ran']", "a tag that makes an object": "name: !!python/object:cmlfa.config.Config {}", "a tag that imports": "name: !!python/module:antigravity",
    "a tag for a tuple": "img_size: !!python/tuple [384, 128]", "a path as a name": "name: /etc/cron.d/run", "a way out as a name": "name: ../../run", "no text as a folder": "output_dir: [1]",
    "lines that stand for gigabytes": "\n".join(["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"] + [f"{y}: &{y} [{', '.join(['*' + x] * 9)}]" for x, y in zip("abcdefgh", "bcdefghi")]),
    "a list in a list in a list": "[" * 5000, "an endless number": "lr: " + "9" * 5000, "two documents": "lr: 0.1\n---\nlr: 0.2", "no text at all": "\x00\x01\x02", "an old setting": "part_loss: 3", "a billion prototypes": "prototypes: 1000000000", "a hundred thousand layers": "lfa_layers: 100000", "images of a million pixels a side": "img_size: [1000000, 1000000]",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_from_strangers(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs.yaml").write_text(SETTINGS[name])
    refused(lambda: load_config("configs.yaml"), "configs.yaml")
    assert not Path("ran").exists()


def test_a_store_from_strangers(tmp_path):
    model = dict(name="synth-small", fingerprint="f" * 64, dim=8)
    for index, words in ((dict(kind="hnsw", file="/etc/passwd", rows=9, effort=1), "lie elsewhere"), (dict(kind="hnsw", file="../secret", rows=9, effort=1), "lie elsewhere"), ("hnsw", "cannot be read")):
        (tmp_path / "manifest.json").write_text(json.dumps(dict(version=1, model=model, index=index)))
        assert words in refused(lambda: Store(tmp_path), tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(dict(version=1, model=model, index=None)))
    for wrong in (dict(model=model | dict(dim=0)), dict(model=model | dict(dim="8")), dict(model=model | dict(dim=2**40)), dict(model=model | dict(name=[])), dict(index=dict(kind="hnsw", file="i.faiss", rows=9, effort="x"))):
        (tmp_path / "manifest.json").write_text(json.dumps(dict(version=1, model=model, index=None) | wrong))
        assert "it names no model" in (said := refused(lambda: Store(tmp_path), tmp_path)) or "it describes no index" in said
    (tmp_path / "manifest.json").write_text(json.dumps(dict(version=1, model=model, index=None)))
    (tmp_path / "items.sqlite").write_bytes(b"SQLite format 3\0" + bytes(500))
    refused(lambda: Store(tmp_path), tmp_path)
