"""Published checkpoints, as their owner meets them: the command as a process, with whole files and with bad ones."""
import argparse
import json
import os

import pytest
import torch
import yaml
from conftest import run

from cmlfa.model import CMLFA
from cmlfa.port import main

SIZE = "--img_size 96 48 --stride_size 12".split()


def block(name, d):
    "Names and shapes of a transformer block."
    return {f"{name}.attn.in_proj_weight": (3 * d, d), f"{name}.attn.in_proj_bias": (3 * d,), f"{name}.attn.out_proj.weight": (d, d), f"{name}.attn.out_proj.bias": (d,),
            f"{name}.mlp.c_fc.weight": (4 * d, d), f"{name}.mlp.c_fc.bias": (4 * d,), f"{name}.mlp.c_proj.weight": (d, 4 * d), f"{name}.mlp.c_proj.bias": (d,),
            **{f"{name}.{ln}.{p}": (d,) for ln in ("ln_1", "ln_2") for p in ("weight", "bias")}}


def shapes(prototypes):
    "Every name and shape of a small published checkpoint: images of 96 x 48 in patches of 12, D = 64."
    pair = lambda name, d: {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    visual, d = "base_model.visual", 64
    out = {f"{visual}.conv1.weight": (64, 3, 12, 12), f"{visual}.class_embedding": (64,), f"{visual}.positional_embedding": (33, 64), f"{visual}.proj": (64, d),
           **pair(f"{visual}.ln_pre", 64), **pair(f"{visual}.ln_post", 64), **block(f"{visual}.transformer.resblocks.0", 64),
           "base_model.token_embedding.weight": (49408, 64), "base_model.positional_embedding": (77, 64), "base_model.text_projection": (64, d), "base_model.logit_scale": (),
           **pair("base_model.ln_final", 64), **block("base_model.transformer.resblocks.0", 64), "classifier.weight": (7, d), "classifier.bias": (7,),
           "cross_attn.in_proj_weight": (3 * d, d), "cross_attn.in_proj_bias": (3 * d,), "cross_attn.out_proj.weight": (d, d), "cross_attn.out_proj.bias": (d,),
           **block("cross_modal_transformer.resblocks.0", d), **{k: v for n in ("ln_pre_t", "ln_pre_i", "ln_post", "mlm_head.ln") for k, v in pair(n, d).items()},
           "mlm_head.dense.weight": (d, d), "mlm_head.dense.bias": (d,), "mlm_head.fc.weight": (49408, d), "mlm_head.fc.bias": (49408,)}
    if not prototypes: return out
    return out | {"safl.part_tokens": (prototypes, d), "safl.pos_embeding": (162, d), **pair("safl.feed.0", d), "safl.feed.1.weight": (4 * d, d), "safl.feed.1.bias": (4 * d,),
                  "safl.feed.4.weight": (d, 4 * d), "safl.feed.4.bias": (d,), **block("shared_transformer.resblocks.0", d)}


def state(prototypes=0, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=g) * 0.1 for k, s in shapes(prototypes).items()}


def save(folder, held, name="best.pth"):
    folder.mkdir(exist_ok=True)
    torch.save(held, folder / name)
    return folder / name


def refused(capsys, *args):
    "The one line that a refused command leaves (in this process: a new one would spend seconds on importing torch)."
    with pytest.raises(SystemExit) as end: main([str(a) for a in args])
    err = capsys.readouterr().err
    assert end.value.code == 2 and len(err.splitlines()) == 1, err
    return err


def test_a_converted_irra_is_measured_and_opened_like_any_run(data, tmp_path):
    weights = state()
    optimizer = torch.optim.Adam([torch.nn.Parameter(weights["classifier.bias"])])
    file = save(tmp_path / "irra", dict(model=weights, optimizer=optimizer.state_dict(), scheduler=dict(last_epoch=60, milestones=(20, 50)), epoch=60))
    done = run("cmlfa_convert", file, *SIZE, "--out", "runs/irra", cwd=tmp_path, check=True)
    assert f"IRRA, epoch 60: {len(weights) - 1} tensors taken over, none missing, 1 left out" in done.stdout and "base_model.logit_scale" in done.stdout
    assert "across the batch" not in done.stdout # IRRA never did that
    run("cmlfa_test", "--config_file", "runs/irra/configs.yaml", "--root_dir", data, cwd=tmp_path, check=True)
    report = json.loads((tmp_path / "runs/irra/metrics.json").read_text())
    assert report["epoch"] == 60 and report["selected_on"] == "test, as published" and 0 <= report["t2i"]["R1"] <= 100
    model = CMLFA.from_pretrained(tmp_path / "runs/irra")
    assert model.settings["prototypes"] == 0 and model.settings["as_published"] and model.settings["itc_positives"] == "pair"
    assert torch.equal(model.text_encoder.text_projection, weights["base_model.text_projection"])
    assert torch.equal(model.irr.encoder.ln_text.weight, weights["ln_pre_t.weight"]) and torch.equal(model.irr.encoder.ln_post.bias, weights["ln_post.bias"])


def test_a_cmlfa_checkpoint_comes_with_a_warning_and_its_geometry(tmp_path, capsys):
    file = save(tmp_path / "cmlfa", {f"module.{k}": v.half() for k, v in state(9).items()}) # bare, saved on several GPUs, half precision
    (file.parent / "configs.yaml").write_text(yaml.dump(dict(img_size=(96, 48), stride_size=12, temperature=0.03, dataset_name="RSTPReid", MLM=True)))
    assert "python/tuple" in (file.parent / "configs.yaml").read_text()
    done = run("cmlfa_convert", file, cwd=tmp_path, check=True)
    assert "trained with attention across the batch" in done.stdout and "published figures do not hold" in done.stdout and "safl.pos_embeding" in done.stdout
    model = CMLFA.from_pretrained(tmp_path / "cmlfa/best")
    assert (model.settings["prototypes"], model.settings["lfa_layers"], model.settings["temperature"]) == (9, 1, 0.03) and model.lfa.as_published
    words = ["a person in a red coat", "someone with a blue backpack", "black boots"]
    torch.testing.assert_close(torch.cat([model.encode_text(w) for w in words]), model.encode_text(words), atol=1e-5, rtol=0)
    assert "holds a run already" in refused(capsys, file)


class Trap:
    def __reduce__(self): return os.mkdir, ("sprung",)


def without(part): return dict(model={k: v for k, v in state(9).items() if part not in k})


def cut(file):
    file.write_bytes(file.read_bytes()[:-5000])
    return file


def text(folder):
    folder.mkdir()
    (folder / "best.pth").write_text("hello")
    return folder / "best.pth"


BAD = {
    "code in the pickle": (lambda f: save(f, dict(model=state(), optimizer=Trap())), "running what is in it"),
    "an object in the pickle": (lambda f: save(f, dict(model=state(), args=argparse.Namespace(lr=1))), "running what is in it"),
    "truncated": (lambda f: cut(save(f, dict(model=state()))), "cut off"),
    "text": (text, "no checkpoint"),
    "nothing": (lambda f: f / "none.pth", "there is no such file"),
    "an empty name": (lambda f: "", "is empty; give a value"),
    "a tensor missing": (lambda f: save(f, without("mlm_head.dense.bias")), "(1: mlm_head.dense.bias)"),
    "prototypes missing": (lambda f: save(f, without("safl.part_tokens")), "are missing"),
    "a tower incomplete": (lambda f: save(f, without("visual.ln_post.bias")), "visual.ln_post.bias"),
    "another shape": (lambda f: save(f, dict(model=state() | {"ln_post.weight": torch.zeros(5)})), "ln_post.weight"),
    "CLIP's own weights": (lambda f: save(f, {k.removeprefix("base_model."): v for k, v in state().items()}), "go to --pretrain_choice"),
    "a ResNet": (lambda f: save(f, {"base_model.visual.layer1.0.conv1.weight": torch.zeros(1)}), "ResNet"),
    "numbers that are none": (lambda f: save(f, dict(model=state() | {"ln_post.bias": torch.full((64,), float("nan"))})), "not finite (ln_post.bias)"),
    "a tower without its projection": (lambda f: save(f, without("text_projection")), "text_projection"),
    "a tower of another rank": (lambda f: save(f, dict(model=state() | {"base_model.visual.conv1.weight": torch.zeros(5)})), "no IRRA or CMLFA"),
    "a list": (lambda f: save(f, [1, 2]), "is no checkpoint of IRRA or CMLFA"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_sentence(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, said = BAD[case]
    line = refused(capsys, make(tmp_path / "x"), *SIZE)
    assert said in line, line
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "x/best").exists()


def test_the_trap_stays_shut_in_a_process_of_its_own(tmp_path):
    done = run("cmlfa_convert", save(tmp_path / "x", dict(model=state(), optimizer=Trap())), cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1 and not (tmp_path / "sprung").exists()


def test_the_wrong_geometry_is_named(tmp_path, capsys):
    line = refused(capsys, save(tmp_path / "x", dict(model=state())))
    assert "img_size" in line, line


@pytest.mark.parametrize("held, said", [("img_size: 5", "is no height and width"), ("img_size: [a, b]", "is no height and width"), ("stride_size: 0", "is no number of pixels"), ("temperature: 0", "must be a number above 0"),
                                        ("dataset_name: mine", "dataset_name 'mine' is unknown"), ("img_size: !!python/object/apply:os.mkdir [sprung]", "cannot be read as plain YAML")])
def test_a_wrong_configs_yaml_is_refused_in_one_sentence(held, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = save(tmp_path / "x", dict(model=state()))
    (file.parent / "configs.yaml").write_text("img_size: [96, 48]\nstride_size: 12\n" + held)
    assert said in (line := refused(capsys, file)), line
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "x/best").exists()
