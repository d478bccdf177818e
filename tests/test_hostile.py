"""Annotations, captions and configurations from strangers: an answer or one sentence, never a traceback."""
import copy
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cmlfa.config import load_config
from cmlfa.data import entry_fault, read_splits
from cmlfa.doctor import check
from cmlfa.items import parse_where
from cmlfa.prep import page, table
from cmlfa.session import check_text
from cmlfa.settings import Config
from cmlfa.support import UserError, plain
from cmlfa.synth import LAYOUTS
from cmlfa.tokenizer import Tokenizer

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
settings.load_profile("fixed")

ROOT = Path(__file__).resolve().parent.parent
text = st.text(max_size=20) | st.text(st.characters(), max_size=5) | st.sampled_from(["", " ", ".", "..", "/", "a.jpg/", "./0.jpg", "0.jpg\0", "\ud800", "C:\\a", "a" * 300, "train", "<b>", "\x1b[2J", "null"])
value = st.recursive(st.none() | st.booleans() | st.integers() | st.sampled_from([2**63, -2**63, 10**400, 10**4000, float("nan"), float("inf")]) | st.floats() | text, lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3), max_leaves=6)


def sentence(e):
    "What a command would print: one line that ends."
    said = plain(str(e))
    assert said and len(said) < 2000, said
    return said


@pytest.fixture(scope="module", params=LAYOUTS)
def dataset(request, tmp_path_factory):
    "Eight tiny images of four people, and what the annotations say of them."
    root, layout = tmp_path_factory.mktemp("hostile"), LAYOUTS[request.param]
    (root / request.param / "imgs").mkdir(parents=True)
    entries = []
    for i in range(8):
        Image.new("RGB", (24, 48), (30 * i, 99, 200)).save(root / request.param / f"imgs/{i}.jpg")
        entries.append(dict(split=("train", "train", "val", "test")[i // 2], captions=[f"A person in coat number {i}."], id=layout.first + i // 2) | {layout.key: f"{i}.jpg"})
    return root, request.param, entries


def look(root, name):
    "Read and examine a data set as the commands do; what was refused, or None."
    try:
        report = check(root, name, workers=1)
        plain(table(report)), page([report])
    except UserError as e: sentence(e)
    try: read_splits(root, name)
    except UserError as e: return sentence(e)


@settings(max_examples=220)
@given(data=st.data())
def test_malformed_entries_are_named(dataset, data):
    root, name, entries = dataset
    key, entries = LAYOUTS[name].key, copy.deepcopy(entries)
    n = data.draw(st.integers(0, len(entries) - 1))
    how = data.draw(st.sampled_from(["field", "field", "field", "without", "another", "twice", "more"]))
    field = data.draw(st.sampled_from(["split", "captions", "id", key]))
    if how == "field": entries[n][field] = data.draw(value if field != "captions" else value | st.lists(value, max_size=3))
    elif how == "without": del entries[n][field]
    elif how == "another": entries[n] = data.draw(value)
    elif how == "twice": entries.insert(n, copy.deepcopy(entries[data.draw(st.integers(0, 7))]))
    else: entries[n][data.draw(text)] = data.draw(value)
    file = root / name / LAYOUTS[name].files[0]
    file.write_text(json.dumps(entries))
    said, faults = look(root, name), [entry_fault(e, key) for e in entries]
    if any(faults): assert f"{file}: entry {faults.index(next(filter(None, faults)))} " in said, said
    elif said: assert str(root / name) in said, said


def test_what_is_wrong_with_an_entry_is_named_with_its_number(dataset): # said here once more, and not by the function that says it there
    root, name, entries = dataset
    key, file = LAYOUTS[name].key, root / name / LAYOUTS[name].files[0]
    for n in (0, 4, 7):
        trials = [(field, {k: v for k, v in entries[n].items() if k != field}) for field in ("split", "id", "captions", key)]
        trials += [("split", entries[n] | dict(split=v)) for v in ("Train", "testing", "", 1, None, ["test"], {})]
        trials += [("id", entries[n] | dict(id=v)) for v in ("1", 1.5, True, None, [1], {}, 2**63)]
        trials += [("object", v) for v in (None, 7, "train", [], [entries[n]], False)]
        for word, entry in trials:
            file.write_text(json.dumps(entries[:n] + [entry] + entries[n + 1:]))
            said = look(root, name)
            assert said and said.startswith(f"{file}: entry {n} ") and re.search(rf"\b{word}\b", said.removeprefix(str(file))), (entry, said)
    file.write_text(json.dumps(entries))
    assert look(root, name) is None


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_files_are_named(dataset, data):
    root, name, entries = dataset
    raw = bytearray(json.dumps(entries).encode(data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-be"]))))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at:at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=5) | st.sampled_from([b"NaN", b"[" * 50, b"9" * 20, b'"\\ud800"', b"{", b"}", b",", b"\0"]))
    file = root / name / LAYOUTS[name].files[0]
    file.write_bytes(raw[:data.draw(st.integers(len(raw) // 2, len(raw) + 1))])
    if said := look(root, name): assert str(root / name) in said, said


@pytest.mark.parametrize("raw", [b"", b"null", b"7", b"{}", b"[]", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"[" + b"9" * 5000 + b"]", b"\xff\xfe", b"\0" * 1000, b'[{"id": ' + b"[" * 900 + b"]" * 900 + b"}]", b'[{"split": "train", "captions": [' + b"[" * 900 + b"]" * 900 + b'], "id": 1, "file_path": "0.jpg"}]'])
def test_files_that_hold_something_else_are_named(dataset, raw):
    root, name, _ = dataset
    file = root / name / LAYOUTS[name].files[0]
    file.write_bytes(raw)
    assert str(file) in look(root, name)


@settings(max_examples=300)
@given(st.text() | st.text(st.characters(), max_size=30))
def test_any_words_are_a_query_or_one_sentence(text):
    for read in (check_text, parse_where, lambda t: Tokenizer()(t, truncate=True)):
        try: read(text)
        except UserError as e: sentence(e)


@pytest.mark.parametrize("text", ["\x00\x1b[2J" * 200_000, "<script>alert(1)</script>" * 42_000, "\u202e\u200d" * 170_000, "&#x41;&lt;" * 100_000, "\ud83d" * 150_000], ids=["control characters", "HTML", "directions", "entities", "half a pair"])
def test_a_million_characters(text):
    with pytest.raises(UserError, match=r"characters were given"): check_text(text)
    try: assert Tokenizer()(text, truncate=True).shape == (1, 77)
    except UserError as e: assert "is empty once it is cleaned" in str(e)


VALUES = ["null", "true", "-1", "0", "1.5", ".nan", ".inf", "-.inf", "1e400", "1" + "0" * 400, "0x" + "f" * 5000, "''", "'a\\0b'", '"a\\0b"', '"\\ud800"', '"\\n"', "[]", "{}", "[[1]]", "[1, a]", "{1: 2}", "2001-01-01", "!!binary aGk=", "!!set {a, b}",
          "!!python/object/apply:os.mkdir [sprung]", "!!python/tuple [384, 128]", "!!timestamp x", "!!int x", "!!float x", "!!bool x", "2001-99-99", "&a [*a]", "*nobody", "../../etc", "/etc/passwd", "'" + "x" * 5000 + "'"]


@pytest.mark.parametrize("name", [f for f in Config.__dataclass_fields__])
def test_a_setting_of_any_kind_is_taken_or_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for held in VALUES:
        (tmp_path / "c.yaml").write_text(f"{name}: {held}\n", encoding="utf-8")
        try: load_config(tmp_path / "c.yaml")
        except UserError as e: assert "c.yaml: " in sentence(e) and (name in str(e) or "YAML" in str(e) or "loss" in str(e)), (held, str(e))
    assert not (tmp_path / "sprung").exists()


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)) + "name: *a19\n"


@pytest.mark.parametrize("raw", [b"", b"7", b"[1]", b"\xff\xfe\x00", b"a: b: c", b"\t", b"[" * 5000, b"a: " * 3000, b"? [a]\n: b", b"<<: 5", b"name: a\nname: b\nbatch_size: x", b"- \0", b"%YAML 9.9\n---\nname: a", b"--- a\n--- b", BOMB.encode(), ("img_size: [" + BOMB.splitlines()[0] + "]").encode(), b"{1: 2, null: 3}", b"0x" + b"f" * 5000 + b": 1", b"!!python/name:os.system : 1"])
def test_a_file_that_is_no_configuration_is_named(raw, tmp_path):
    (tmp_path / "c.yaml").write_bytes(raw)
    with pytest.raises(UserError) as e: load_config(tmp_path / "c.yaml")
    assert "c.yaml: " in sentence(e.value)


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.lists(st.sampled_from([b"name: ", b"img_size: ", b"- ", b"[", b"]", b"{", b"}", b"!!int ", b"&a ", b"*a", b"\n", b" ", b"lr: ", b"1e-5", b"'", b'"', b"|", b">", b"?", b": ", b"#", b"\\", b"~", b"0o9", b"1:99:99", b"2001-02-30"]), max_size=12).map(b"".join))
def test_any_bytes_are_a_configuration_or_one_sentence(tmp_path_factory, raw):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(raw)
    try: load_config(file)
    except UserError as e: assert re.search(r"any\.yaml: ", sentence(e))


@pytest.mark.parametrize("seed", sorted((ROOT / "tests/fuzz").glob("*/*")), ids=lambda f: f"{f.parent.name}-{f.name}")
def test_what_was_found_once_stays_mended(seed, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from fuzz import once
    once(seed.parent.name, seed.read_bytes())
