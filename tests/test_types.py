"""What mypy is shown: patched methods inside their class, in a copy and in the stubs of the built package; and the mistakes that it found."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import fold

SOURCE = '''from fastcore.basics import patch

class Lamp:
    "Gives light."
    def __init__(self, watts: int): self.watts, self.on, self.shade = watts, False, Shade()

@patch
def switch(self: Lamp,
    on: bool, # or off
) -> None:
    "Turn it."
    self.on = onn

@patch(as_prop=True)
def heat(self: Lamp) -> float: return .9 * self.watts # as watts

@patch(cls_method=True)
def small(cls: Lamp) -> "Lamp": return cls(5)

class Shade: pass
'''


def test_patched_methods_stand_in_their_class_and_keep_their_lines():
    text, numbers = fold.fold(SOURCE)
    space = {"patch": None}
    exec(text.replace("from fastcore.basics import patch", "").replace("onn", "on"), space)
    lamp = space["Lamp"].small()
    lamp.switch(True)
    assert (lamp.on, lamp.heat, lamp.watts) == (True, 4.5, 5)
    lines = SOURCE.splitlines()
    assert all(new.strip() == lines[n - 1] or lines[n - 1].startswith(("@patch", "def ", "class", "    ")) for new, n in zip(text.splitlines(), numbers) if new.strip())
    assert lines[numbers[text.splitlines().index("        self.on = onn")] - 1] == "    self.on = onn" # what mypy says of it is said of line 12
    assert sorted(numbers) == list(range(1, len(lines) + 1))


def test_a_method_for_a_class_of_another_module_is_refused():
    with pytest.raises(SystemExit, match="Lamp: is patched in another module"): fold.fold(SOURCE.replace("class Lamp", "class Other"))


def test_a_stub_has_signatures_and_attributes_and_no_bodies():
    text = fold.stub(SOURCE, {})
    for line in ("    watts: int", "    on: Any", "    shade: Shade", "    def switch(self, on: bool) -> None:", "    @property\n    def heat(self) -> float:"): assert line in text, line
    assert "onn" not in text and "@patch" not in text
    more = fold.stub("from typing import TYPE_CHECKING\nfrom .bulb import glass\nif TYPE_CHECKING: from far import Away\n" + SOURCE.replace("float: return", "float: # type: ignore[misc] # known\n    self.volt, self.ampere = measured(self)\n    return"), {})
    for line in ("from .bulb import glass as glass", "    from far import Away", "    volt: Any", "    ampere: Any", "    def heat(self) -> float: # type: ignore[misc]"): assert line in more, line
    assert "watts" not in fold.stub(SOURCE.replace("class Lamp:", "class Lamp(Thing):"), {"Thing": {"watts"}}).replace("watts: int)", "") # the class below has said it better


def test_an_installed_package_comes_with_stubs_for_patched_classes_alone(tmp_path):
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path], cwd=root, check=True, capture_output=True)
    stubs = {f.stem for f in (tmp_path / "cmlfa").glob("*.pyi")}
    assert {"tokenizer", "store", "model"} <= stubs and "losses" not in stubs
    assert "def __call__(self, texts" in (tmp_path / "cmlfa" / "tokenizer.pyi").read_text(encoding="utf-8")
    assert not list((root / "cmlfa").glob("*.pyi"))


def untyped(source: str) -> list[str]:
    "Public functions and methods of a module whose arguments or result have no type."
    found = []
    def look(body, inside=""):
        for n in body:
            if isinstance(n, ast.ClassDef) and not n.name.startswith("_"): look(n.body, f"{n.name}.")
            if not isinstance(n, ast.FunctionDef) or n.name.startswith("_") and not n.name.startswith("__"): continue
            args = n.args.posonlyargs + n.args.args + n.args.kwonlyargs + [a for a in (n.args.vararg, n.args.kwarg) if a]
            first = 1 if inside and not any(ast.unparse(d) == "staticmethod" for d in n.decorator_list) else 0 # self or cls
            if not all(a.annotation for a in args[first:]) or not n.returns and n.name != "__init__": found.append(inside + n.name)
    look(ast.parse(source).body)
    return found


def test_every_public_function_has_all_its_types():
    assert untyped("def f(a: int, *b): ...\ndef g(): ...\ndef _h(a): ...\nclass A:\n def __init__(self): ...\n def m(self, a) -> None: ...\n def k(self) -> int: ...") == ["f", "g", "A.m"]
    left = {f.name: untyped(fold.fold(f.read_text(encoding="utf-8"))[0]) for f in (fold.ROOT / "cmlfa").glob("*.py")}
    assert not {k: v for k, v in left.items() if v}


def test_without_open_clip_both_who_need_it_say_how_to_get_it(monkeypatch):
    from cmlfa import backbones, bpe
    monkeypatch.setattr(bpe, "find_spec", lambda name: None)
    for f in (bpe.read_merges, backbones.configs):
        with pytest.raises(bpe.UserError, match="pip install open_clip_torch"): f.__wrapped__()


def test_an_audit_that_could_look_nothing_up_is_no_clean_one():
    from audit import verdict
    known, unknown = dict(name="a", version="1", vulns=[]), dict(name="b", skip_reason="not found")
    hole = dict(name="c", version="2", vulns=[dict(id="PYSEC-1", fix_versions=["3"])])
    assert verdict(dict(dependencies=[unknown]))[1] == 2
    assert verdict(dict(dependencies=[known, unknown])) == ("1 of 2 packages looked up, 0 known holes", 0)
    assert verdict(dict(dependencies=[known, hole])) == ("c 2: PYSEC-1, mended in 3\n2 of 2 packages looked up, 1 known holes", 1)
