"""Towers at CLIP's real sizes, and weights that come over a network or from a stranger, in processes of their own."""
import hashlib
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, resize_pos_embed
from safetensors.torch import save_file

from cmlfa.backbones import OPENAI, arch_named, pretrained
from cmlfa.clip import TextEncoder, check_arch, end_positions
from cmlfa.fitting import fit_grid, load_image_weights, load_text_weights
from cmlfa.model import build_model
from cmlfa.resnet import image_tower
from cmlfa.support import UserError
from conftest import run
from forked import Command


def their_clip(name, size, layers=None, text_layers=1):
    "open_clip's model of an OpenAI name, its depth cut where `layers` says so, every parameter and statistic moved off its start."
    a = arch_named(name)
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=layers or a.layers, width=a.width, patch_size=a.patch, image_size=size)
    model = CLIP(a.dim, vision, CLIPTextCfg(width=a.text_width, heads=a.text_heads, layers=text_layers), quick_gelu=a.quick_gelu).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p) * p.std().nan_to_num(.1).clamp(.01, .1))
        for k, b in model.named_buffers():
            if "running" in k: b.add_(torch.rand_like(b) * .1)
    return model


def gap(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("name, size, quick_gelu", [("ViT-B/16", (224, 224), True), ("ViT-B/16", (384, 128), True), ("ViT-B/16", (384, 128), False),
                                                    ("ViT-B/32", (384, 128), True), ("ViT-L/14", (224, 224), True), ("ViT-L/14@336px", (378, 126), True)])
def test_transformers_at_their_real_width_agree_with_open_clip(name, size, quick_gelu):
    arch = replace(arch_named(name), layers=2, text_layers=1, quick_gelu=quick_gelu) # two real blocks; all others are alike
    theirs = their_clip(name, arch.image_size, 2)
    state = theirs.state_dict()
    arch = check_arch(replace(arch, image_size=size))
    image, text = image_tower(arch).eval(), TextEncoder(arch).eval()
    load_image_weights(image, state)
    load_text_weights(text, state)
    wide = CLIP(arch.dim, CLIPVisionCfg(layers=2, width=arch.width, patch_size=arch.patch, image_size=size, output_tokens=True),
                CLIPTextCfg(width=arch.text_width, heads=arch.text_heads, layers=1), quick_gelu=quick_gelu).eval()
    resize_pos_embed(state, wide)
    wide.load_state_dict(state)
    x, ids = torch.randn(1, 3, *size), torch.randint(1, 49000, (2, 77))
    ids[0, 9], ids[1, 76] = 49407, 49407
    with torch.no_grad():
        (whole, patches), words = wide.visual(x), wide.encode_text(ids)
        ours, mine = image(x), text(ids)[range(2), end_positions(ids)]
    assert gap(ours[:, 0], whole) < 1e-5 and gap(ours[:, 1:], patches @ wide.visual.proj) < 1e-5 and gap(mine, words) < 1e-5


@pytest.mark.parametrize("name", ["RN50", "RN101"])
def test_resnets_agree_with_open_clip(name):
    theirs = their_clip(name, 224)
    state, arch = theirs.state_dict(), arch_named(name)
    for size in ((224, 224), (384, 128)):
        image = image_tower(check_arch(replace(arch, image_size=size))).eval()
        load_image_weights(image, state)
        pool = theirs.visual.attnpool
        pool.positional_embedding = torch.nn.Parameter(fit_grid(state["visual.attnpool.positional_embedding"], image.grid))
        x = torch.randn(1, 3, *size)
        with torch.no_grad(): assert gap(image(x)[:, 0], theirs.visual(x)) < 1e-5


def test_a_whole_model_of_each_kind_is_built_by_name():
    for name in ("RN50", "ViT-B/32"):
        size, stride = (384, 128), arch_named(name).patch
        model = build_model("none", name, size, stride, losses="itc", lfa_layers=1).eval()
        assert model.encode_image(torch.randn(1, 3, *size)).shape == model.encode_text("a person").shape == (1, arch_named(name).dim)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A folder with the weights of a small CLIP that has CLIP's own vocabulary."
    folder = tmp_path_factory.mktemp("weights")
    model = CLIP(64, CLIPVisionCfg(layers=1, width=64, patch_size=16, image_size=64), CLIPTextCfg(width=64, heads=1, layers=1), quick_gelu=True)
    save_file(model.state_dict(), folder / "clip.safetensors")
    torch.save(model.state_dict(), folder / "clip.pt")
    return folder


def test_both_interpolations_reach_the_model(small):
    args = dict(img_size=(96, 32), stride_size=16, losses="itc", prototypes=0)
    bicubic, bilinear = (build_model(str(small / "clip.pt"), pos_interpolation=how, **args).image_encoder.vit.pos_embed for how in ("bicubic", "bilinear"))
    assert not torch.equal(bicubic, bilinear)


def test_training_starts_from_a_file_with_overlapping_patches_and_a_short_context(small, data, tmp_path):
    run("cmlfa_train", "--name", "a", "--root_dir", data, "--pretrain_choice", small / "clip.safetensors", "--img_size", "96", "32", "--stride_size", "8", "--text_length", "40",
        "--loss_names", "sdm", "--prototypes", "0", "--num_epoch", "1", "--pos_interpolation", "bilinear", "--cpu", cwd=tmp_path, check=True)
    assert (tmp_path / "logs/a/best.safetensors").is_file()


BAD = {"cut.pt": "damaged or cut off", "flipped.pt": "damaged or cut off", "trap.pt": "more than tensors", "script.pt": "more than tensors", "page.pt": "more than tensors",
       "other.pt": "is missing", "cut.safetensors": "damaged or cut off"}


@pytest.fixture(scope="module")
def bad(small):
    "Files that must not be read, one for each way of being bad."
    whole, ran = (small / "clip.pt").read_bytes(), small / "it ran"

    class Trap:
        def __reduce__(self): return os.mkdir, (str(ran),)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 64
    (small / "cut.pt").write_bytes(whole[:len(whole) // 2])
    (small / "flipped.pt").write_bytes(flipped)
    (small / "page.pt").write_text("<html>404</html>")
    (small / "cut.safetensors").write_bytes((small / "clip.safetensors").read_bytes()[:100_000])
    torch.save({"state_dict": Trap()}, small / "trap.pt")
    torch.save({"layer1.weight": torch.zeros(3)}, small / "other.pt")
    with zipfile.ZipFile(small / "script.pt", "w") as z:
        for name, content in (("a/constants.pkl", b""), ("a/data.pkl", pickle.dumps(Trap(), 2))): z.writestr(name, content)
    return small


def test_bad_files_end_in_one_sentence_and_nothing_runs(bad):
    for name, why in BAD.items():
        with pytest.raises(UserError) as e: pretrained(str(bad / name))
        assert why in str(e.value) and str(bad / name) in str(e.value) and "\n" not in str(e.value)
    assert not (bad / "it ran").exists()


@pytest.mark.parametrize("choice, said", [("trap.pt", "more than tensors"), ("ViT-B-16-SigLIP:webli", "without a class token")])
def test_the_command_refuses_in_one_line(bad, data, tmp_path, choice, said):
    choice = bad / choice if choice == "trap.pt" else choice
    done = run("cmlfa_train", "--root_dir", data, "--pretrain_choice", choice, "--img_size", "96", "32", "--cpu", cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (bad / "it ran").exists()


def test_without_a_network_the_sentence_says_what_to_put_where(tmp_path):
    code = "from cmlfa.backbones import fetch; from cmlfa.support import command; command(fetch)(f'http://127.0.0.1:9/{\"0\" * 64}/ViT-B-16.pt', '.')"
    done = run("python", "-c", code, cwd=tmp_path)
    assert done.returncode == 2 and "another machine and put it at ViT-B-16.pt" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_two_processes_fetch_one_file_once(tmp_path):
    (tmp_path / "served").mkdir()
    content = os.urandom(3_000_000)
    sha = hashlib.sha256(content).hexdigest()
    (tmp_path / "served" / sha).mkdir()
    (tmp_path / "served" / sha / "a.pt").write_bytes(content)
    server = subprocess.Popen([sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"], cwd=tmp_path / "served", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        port = server.stdout.readline().split("port ")[1].split()[0]
        code = f"from cmlfa.backbones import fetch; print(fetch('http://127.0.0.1:{port}/{sha}/a.pt', 'cache'))"
        both = [Command("python", "-c", code, cwd=tmp_path) for _ in range(2)]
        for p in both:
            out, err = p.communicate(timeout=300)
            assert p.returncode == 0 and "a.pt" in out, err
    finally:
        server.terminate()
        asked = server.stderr.read().count("GET ")
    assert asked == 1 and (tmp_path / "cache/a.pt").read_bytes() == content


def test_the_list_shows_every_backbone():
    done = subprocess.run([sys.executable, "-m", "cmlfa.clip", "--list"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name in (*OPENAI, "ViT-H-14", "ViT-bigG-14"): assert f"\n{name} " in done.stdout
    assert "SigLIP" not in done.stdout
