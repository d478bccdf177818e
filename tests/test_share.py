"""Models that leave: shared folders, the bundled model, ONNX files."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, run

import cmlfa
from cmlfa.model import CMLFA
from cmlfa.share import RESPONSIBLE

ROOT = Path(cmlfa.__file__).resolve().parent.parent
BUNDLED = ROOT / "cmlfa/models/synth-small"
WORDS = ["a man in a red shirt and blue trousers", "a woman with a black backpack"]


@pytest.fixture(scope="module")
def work(data, tmp_path_factory):
    "A folder with a short run in logs/short."
    folder = tmp_path_factory.mktemp("share")
    run("cmlfa_train", "--name", "short", "--root_dir", data, *TINY, "--num_epoch", "1", "--lr", "1e-3", "--loss_names", "sdm+id+mlm", "--MLM", cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def shared(work):
    run("cmlfa_export", "logs/short", "shared", "--to", "folder", "--half", "--data", "SynthPEDES, size small.", cwd=work, check=True)
    return work / "shared"


def test_the_folder_tells_what_made_it_and_nothing_of_the_machine(shared, data):
    assert {f.name for f in shared.iterdir()} == {"README.md", "config.json", "configs.yaml", "log.txt", "metrics.json", "model.safetensors", "tokenizer_config.json"}
    report, card = json.loads((shared / "metrics.json").read_text()), (shared / "README.md").read_text()
    for said in ("SynthPEDES, size small.", f"| text to image | {report['t2i']['R1']:.2f} |", "must not be used", "research only", 'from_pretrained("shared")'): assert said in card, said
    for f in shared.iterdir(): assert str(data).encode() not in f.read_bytes(), f.name
    assert (shared / "model.safetensors").stat().st_size < 20e6


def test_it_searches_as_the_run_does(work, shared):
    whole, small = CMLFA.from_pretrained(work / "logs/short"), CMLFA.from_pretrained(shared)
    assert hasattr(whole, "irr") and not hasattr(small, "irr") and not hasattr(small, "classifier")
    torch.testing.assert_close(small.encode_text(WORDS), whole.encode_text(WORDS), atol=3e-3, rtol=0)


def test_a_fresh_process_opens_it_from_the_installed_package(shared, tmp_path):
    source = tmp_path / "source" # setuptools builds inside the folder it is given
    shutil.copytree(ROOT / "cmlfa", source / "cmlfa", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "tools").mkdir()
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "tools/fold.py"): shutil.copy(ROOT / name, source / name)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", tmp_path / "site", source]
    subprocess.run(install, check=True, capture_output=True)
    code = f"import cmlfa.model as m; x = m.CMLFA.from_pretrained({str(shared)!r}).encode_text({WORDS!r}); print(m.__file__, tuple(x.shape), x.norm(dim=1).tolist())"
    code += "; m.CMLFA.from_pretrained('synth-small').encode_text('a red hat'); print('bundled')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True)
    assert done.returncode == 0 and str(tmp_path / "site") in done.stdout and "(2, 128)" in done.stdout, done.stdout + done.stderr
    assert "bundled" in done.stdout, done.stderr


@pytest.mark.parametrize("name, change, said", [
    ("model.safetensors", lambda b: b[:-10], "cut off"), ("config.json", lambda b: b[:50], "is no JSON"), ("config.json", lambda b: b.replace(b'"width": 128', b'"width": 64'), "does not fit"),
    ("config.json", lambda b: b"[]", "holds no names and values"), ("config.json", None, "cannot be read"), ("model.safetensors", None, "holds neither"), ("tokenizer_config.json", lambda b: b.replace(b"49407", b"1"), "end is 1")])
def test_a_damaged_folder_is_refused_in_one_sentence(shared, tmp_path, name, change, said):
    shutil.copytree(shared, tmp_path / "x")
    if change: (tmp_path / "x" / name).write_bytes(change((tmp_path / "x" / name).read_bytes()))
    else: (tmp_path / "x" / name).unlink()
    done = run("cmlfa_export", "x", "y", cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and said in done.stderr, done.stderr
    assert not (tmp_path / "y").exists()


def test_onnx_says_the_same_without_this_package(work):
    pytest.importorskip("onnxscript", reason="onnx, onnxscript and onnxruntime are optional"), pytest.importorskip("onnxruntime")
    done = run("cmlfa_export", "logs/short", "onnx", cwd=work, check=True)
    assert "differs from PyTorch by at most" in done.stdout and not re.search(r"Traceback|Error|cmlfa_export:", done.stderr), done.stderr # older exporters log their own internals
    model = CMLFA.from_pretrained(work / "logs/short")
    pixels = torch.randint(0, 256, (4, 3, *model.arch.image_size), dtype=torch.uint8)
    torch.save(dict(pixels=pixels, ids=model.tokenizer(WORDS)), work / "inputs.pt")
    code = ("import sys, torch, onnxruntime as o; x = torch.load('inputs.pt'); f = lambda n, k: torch.from_numpy(o.InferenceSession(f'onnx/{n}.onnx').run(None, {k: x['pixels' if n == 'image' else 'ids'].numpy()})[0]);"
            "torch.save([f('image', 'images'), f('text', 'ids')], 'outputs.pt'); assert not any(m.startswith('cmlfa') for m in sys.modules)")
    subprocess.run([sys.executable, "-c", code], cwd=work, check=True)
    image, text = torch.load(work / "outputs.pt")
    from cmlfa.export import ImageTower
    with torch.no_grad(): torch.testing.assert_close(image, ImageTower(model)(pixels), atol=1e-4, rtol=0)
    torch.testing.assert_close(text, model.encode_text(WORDS), atol=1e-4, rtol=0)


def test_the_bundled_model_is_small_and_documented():
    assert sum(f.stat().st_size for f in BUNDLED.iterdir()) <= 20e6
    for name in ("README.md", "configs.yaml", "log.txt", "metrics.json"): assert (BUNDLED / name).is_file(), name
    model = CMLFA.from_pretrained("synth-small")
    assert f"{model.meta['metrics']['t2i']['R1']:.2f}" in (BUNDLED / "README.md").read_text()
    assert model.encode_text(WORDS).norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-4)


def test_the_bundled_card_says_what_notebook_21_measured():
    card, notebook = (BUNDLED / "README.md").read_text(encoding="utf-8"), json.loads((ROOT / "nbs/21_responsible.ipynb").read_text(encoding="utf-8"))
    printed = "".join("".join(o.get("text", [])) for c in notebook["cells"] for o in c.get("outputs", []))
    r1, low, high = re.search(r"captions: R1 ([\d.]+) \(([\d.]+) to ([\d.]+)\)", printed).groups()
    tones = re.findall(r"tone \d ([\d.]+)", printed)
    (groups,) = re.search(r"(\d+) groups; the interval misses the overall R1 in 0 of them: none", printed).groups()
    for said in (f"R1 {r1}, with a 95% interval over people of {low} to {high}", f"| R1 | {' | '.join(tones)} |", f"Of {groups} groups", f"misses {r1} in none", RESPONSIBLE): assert said in card, said


def test_the_bundled_model_finds_people_it_has_never_seen(data, tmp_path):
    run("cmlfa_test", "synth-small", "--dataset_name", "CUHK-PEDES", "--root_dir", data, "--out", "here", cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "here/metrics.json").read_text())["t2i"]["R1"] > 60 # of 12 people; chance is 8
