"""Coverage-guided fuzzing (atheris) of what reads the files and words of strangers.

    python tools/fuzz.py --seconds 600              # every target, one after the other
    python tools/fuzz.py config --seconds 60        # one

A target may answer or raise a UserError; anything else is a find: its input is written to tests/fuzz/TARGET, where the tests try it again at each run."""
import argparse
import atexit
import copy
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KEPT = Path(__file__).resolve().parent.parent / "tests/fuzz"
SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


FIELDS = "split captions id file_path img_path processed_tokens other".split()
VALUES = [None, True, 0, -1, 7, 1.5, 10 ** 30, float("inf"), "", "0.jpg", "3.jpg", "../0.jpg", "/0.jpg", "train", "test", "a" * 300, "\0", "\udc80", "\u202e", "7", [], [[]], [""], ["A man.", None], ["A man."] * 3, {}, {"id": 1}]


def changed(data: bytes, field: str) -> bytes:
    "Sound entries with changes, three bytes each: in which entry, to which field, which value. Bytes that are JSON by chance are few, and no other gets beyond the parser."
    entries = [dict(split=s, captions=["A man in a red coat."], id=i) | {field: f"{i}.jpg"} for i, s in enumerate(("train", "val", "test", "test"))]
    for where, key, value in zip(*[iter(data)] * 3):
        n, (key, value) = where % len(entries), (FIELDS[key % len(FIELDS)], copy.deepcopy(VALUES[value % len(VALUES)]))
        if where >= 240: entries[n] = value
        elif where >= 200: entries.append(value if where % 2 else entries[n])
        elif where >= 160 and isinstance(entries[n], dict): entries[n].pop(key, None)
        elif isinstance(entries[n], dict): entries[n][key] = value
    return json.dumps(entries).encode()


def annotations(data: bytes):
    "The first byte chooses the layout; the rest is the annotation file, or, above 127, changes to a sound one."
    from cmlfa.data import read_splits
    from cmlfa.synth import LAYOUTS
    name = list(LAYOUTS)[data[0] % 3 if data else 0]
    (SCRATCH / name / "imgs").mkdir(parents=True, exist_ok=True)
    for i in range(4): (SCRATCH / name / f"imgs/{i}.jpg").touch()
    (SCRATCH / name / LAYOUTS[name].files[0]).write_bytes(changed(data[1:99], LAYOUTS[name].key) if data[:1] > b"\x7f" else data[1:])
    read_splits(SCRATCH, name)


def tokenizer(data: bytes):
    "Bytes as text; what is encoded must decode to the cleaned text."
    from cmlfa.tokenizer import Tokenizer, chunks, split_words
    try: text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError: text = data.decode("latin-1")
    tok = Tokenizer()
    assert tok.decode(tok.encode(text)) == " ".join(w for c in chunks(text) for w in split_words(c))
    tok(text, truncate=True)


def config(data: bytes):
    "A configuration file."
    from cmlfa.config import load_config
    (file := SCRATCH / "configs.yaml").write_bytes(data)
    load_config(file)


TARGETS = dict(annotations=annotations, tokenizer=tokenizer, config=config)
ENTRY = '{"split": "%s", "captions": ["A man in a red coat."], "id": %d, "%s": "%d.jpg"}'
FIRST = dict( # something that works, to begin with
    annotations=[bytes([n]) + ("[" + ", ".join(ENTRY % (s, i, key, i) for i, s in enumerate(("train", "val", "test", "test"))) + "]").encode() for n, key in enumerate(("file_path", "file_path", "img_path"))] + [bytes([n, 0, 1, 20, 1, 2, 5]) for n in (129, 130, 131)],
    tokenizer=[b"A man in a red coat, size 12.", "&amp;lt;b&gt; caf\u00c3\u00a9 \u202e \U0001f642".encode()],
    config=[b"lr: 1e-3\nimg_size: [96, 48]\nname: a\nMLM: true\n", b"milestones: [1, 2]\nloss_names: sdm+id\nlr: !!float 1\n"])


def once(name: str, data: bytes):
    "Try one input; a UserError is an answer."
    from cmlfa.support import UserError
    try: TARGETS[name](data)
    except UserError as e: assert str(e), "a sentence"


def keep(name: str, data: bytes):
    "Try one input; write it down if it is a find. Not every version of atheris does so after an exception."
    try: once(name, data)
    except BaseException:
        (KEPT / name / f"find-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
        raise


def hunt(name: str, seconds: int, corpus: str):
    "In a process of its own: look for inputs until the time is over or something is found."
    import atheris
    with atheris.instrument_imports(include=["cmlfa", "yaml", "ftfy"]): import cmlfa.config, cmlfa.data, cmlfa.tokenizer # noqa: E401, F401
    (KEPT / name).mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], corpus, str(KEPT / name), f"-max_total_time={seconds}", "-max_len=4096", "-timeout=20", f"-artifact_prefix={KEPT / name}/", "-print_final_stats=1"], lambda data: keep(name, data))
    atheris.Fuzz()


def fuzz(name: str, seconds: int) -> dict:
    "Fuzz one target; how many inputs were tried, how many distinct ones were worth keeping, what was found."
    before = set((KEPT / name).glob("*"))
    with tempfile.TemporaryDirectory() as corpus:
        for i, data in enumerate(FIRST[name]): (Path(corpus) / str(i)).write_bytes(data)
        done = subprocess.run([sys.executable, __file__, name, "--seconds", str(seconds), "--corpus", corpus], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        found = sorted(f.name for f in set((KEPT / name).glob("*")) - before)
        if done.returncode and not found: raise RuntimeError(done.stdout[-3000:])
        if found: print(done.stdout[-3000:], file=sys.stderr)
        tried = int((re.findall(r"^(?:#|stat::number_of_executed_units:\s*)(\d+)", done.stdout, re.M) or ["0"])[-1])
        return dict(target=name, seconds=seconds, tried=tried, kept=len(list(Path(corpus).iterdir())), found=found)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; all if none is named")
    p.add_argument("--seconds", type=int, default=600, help="for each target (default 600)")
    p.add_argument("--corpus", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.corpus: return hunt(a.targets[0], a.seconds, a.corpus)
    reports = [fuzz(name, a.seconds) for name in a.targets or TARGETS]
    for r in reports: print(json.dumps(r))
    sys.exit(any(r["found"] for r in reports))


if __name__ == "__main__": main()
