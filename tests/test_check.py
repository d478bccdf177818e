"""The doctor, the import and the layout scripts as a user meets them."""
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import BIN, PUBLISHED, TINY, run
from forked import Command
from PIL import Image

from cmlfa.prep import main
from cmlfa.synth import LAYOUTS, write_synth

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    "SynthPEDES in all three layouts."
    root = tmp_path_factory.mktemp("three")
    for layout in LAYOUTS: write_synth(root, "small", layout, workers=1, progress=False)
    return root


def status(*args):
    "Exit status of the command, called in this process."
    try: main([str(a) for a in args])
    except SystemExit as e: return e.code or 0
    return 0


def annotations(root, layout="CUHK-PEDES"): return root / layout / LAYOUTS[layout].files[0]


def edit(change):
    "A damage to the annotations."
    def damage(root):
        for layout in LAYOUTS:
            file = annotations(root, layout)
            if not file.exists(): continue
            entries = json.loads(file.read_text())
            change(entries, LAYOUTS[layout].key)
            file.write_text(json.dumps(entries))
    return damage


def image(n, change):
    "A damage to the image of entry n."
    def damage(root):
        for layout in LAYOUTS:
            file = annotations(root, layout)
            if file.exists(): change(root / layout / "imgs" / json.loads(file.read_text())[n][LAYOUTS[layout].key])
    return damage


def copy_image(split_differs):
    "One image over another person's, in another split or in the same."
    def damage(root):
        for layout in LAYOUTS:
            if not annotations(root, layout).exists(): continue
            entries, key = json.loads(annotations(root, layout).read_text()), LAYOUTS[layout].key
            other = next(e for e in entries if e["id"] != entries[0]["id"] and (e["split"] != entries[0]["split"]) == split_differs)
            shutil.copy(root / layout / "imgs" / entries[0][key], root / layout / "imgs" / other[key])
    return damage


def other_split(e): return "test" if e["split"] == "train" else "train"


DAMAGES = { # what happened: (how, words of the finding, exit status)
    "deleted": (image(3, lambda p: p.unlink()), "is missing", 1),
    "cut off": (image(3, lambda p: p.write_bytes(p.read_bytes()[:700])), "breaks off in the middle", 1),
    "emptied": (image(3, lambda p: p.write_bytes(b"")), "it is empty", 1),
    "a web page": (image(3, lambda p: p.write_bytes(b"<html>404</html>")), "cannot be read", 1),
    "a bomb": (image(3, lambda p: Image.new("1", (9000, 9000)).save(p, "PNG")), "9,000 x 9,000", 1),
    "a line": (image(3, lambda p: Image.new("RGB", (300, 4)).save(p)), "300 x 4", 1),
    "in two splits by bytes": (copy_image(True), "byte for byte in two splits", 1),
    "of two people": (copy_image(False), "two identities share", 0),
    "listed twice": (edit(lambda e, k: e.append(dict(e[0]))), "listed 2 times", 0),
    "a person in two splits": (edit(lambda e, k: e[0].update(split=other_split(e[0]))), "is in the splits", 1),
    "nobody in test": (edit(lambda e, k: [x.update(split="train") for x in e]), "0 identities in the split test", 1),
    "an unknown split": (edit(lambda e, k: e[3].update(split="valid")), "entry 3 has the split 'valid'", 1),
    "a path out": (edit(lambda e, k: e[3].update({k: "../../secret.jpg"})), "leaves the folder", 1),
    "an absolute path": (edit(lambda e, k: e[3].update({k: "/etc/passwd"})), "leaves the folder", 1),
    "an id as text": (edit(lambda e, k: e[3].update(id="7")), "entry 3 has the id '7'", 1),
    "an enormous id": (edit(lambda e, k: e[3].update(id=10**4000)), "must be a whole number below", 1),
    "a caption that is no text": (edit(lambda e, k: e[3].update(captions=[{"a": 1}])), "entry 3 has a caption that is no text", 1),
    "a folder as image": (image(3, lambda p: (p.unlink(), p.mkdir())), "is no file but a folder", 1),
    "a link to itself": (image(3, lambda p: (p.unlink(), p.symlink_to(p))), "symbolic links", 1),
    "a file of a terabyte": (image(3, lambda p: os.truncate(p, 10**12)), "has 1,000,000,000,000 bytes", 1),
    "an empty caption": (edit(lambda e, k: e[3].update(captions=[" "])), "empty caption", 1),
    "no captions": (edit(lambda e, k: e[3].pop("captions")), "has no captions", 1),
    "a name no file can have": (edit(lambda e, k: e[3].update({k: "\ud800.jpg"})), "no file can have this name", 1),
    "an endless path": (edit(lambda e, k: e[3].update({k: "a/" * 3000 + "a.jpg"})), "cannot be read", 1),
    "no annotations": (lambda r: [p.unlink() for p in r.glob("*/*.json")], "is missing; it comes with", 1),
    "no object": (edit(lambda e, k: e.insert(3, 7)), "entry 3 is no object", 1),
    "a shared caption": (edit(lambda e, k: [x.update(captions=["A person in a red coat."]) for x in (e[0], e[50])]), "captions that two identities share", 0),
    "a long caption": (edit(lambda e, k: e[3].update(captions=["a red coat and " * 40])), "longer than the context", 0),
    "no imgs": (lambda r: [c.rename(d / c.name) for d in r.iterdir() for c in (d / "imgs").iterdir()] and [(d / "imgs").rmdir() for d in r.iterdir()], "read as it is", 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sound_data_is_called_sound(three, layout, capsys):
    assert status(three, "--dataset_name", layout) == 0
    out = capsys.readouterr().out
    assert "can be trained on" in out and "BROKEN" not in out


@pytest.mark.parametrize("what", DAMAGES)
def test_damages_are_found_and_named(three, tmp_path, what, capsys):
    damage, words, wanted = DAMAGES[what]
    layout = list(LAYOUTS)[list(DAMAGES).index(what) % 3] # each layout meets a third of them
    shutil.copytree(three / layout, tmp_path / layout)
    damage(tmp_path)
    assert status(tmp_path) == wanted
    out = capsys.readouterr().out
    assert words in out and ("BROKEN" in out) == bool(wanted), out


def test_what_is_no_file_is_not_opened(copy, tmp_path):
    images, entries = copy / "CUHK-PEDES/imgs", json.loads(annotations(copy).read_text())
    for n in (3, 4): (images / entries[n]["file_path"]).unlink()
    os.mkfifo(images / entries[3]["file_path"])
    (images / entries[4]["file_path"]).symlink_to("/dev/zero")
    os.mkfifo(images / "unlisted.jpg")
    (images / "loop").symlink_to(images)
    done = run("cmlfa_check", copy, "--html", "r.html", cwd=tmp_path) # and not for ever
    assert done.returncode == 1 and done.stdout.count("is no file but a pipe or a device") == 2 and "Traceback" not in done.stderr, done.stderr
    assert "unlisted.jpg" in (tmp_path / "r.html").read_text()


def test_odd_names(copy, tmp_path, capsys):
    images, entries = copy / "CUHK-PEDES/imgs", json.loads(annotations(copy).read_text())
    odd = ["new\nline.jpg", "\U0001f600 <b>&.jpg", "x" * 251 + ".jpg", "\x1b[2J.jpg", "-rf.jpg", "a'b\"c.jpg"]
    for e, name in zip(entries, odd):
        (images / e["file_path"]).rename(images / name)
        e["file_path"] = name
    annotations(copy).write_text(json.dumps(entries))
    shutil.copy(images / odd[0], os.fsencode(images) + b"/\xff\xfe.jpg") # no text in any encoding
    assert status(copy, "--html", tmp_path / "r.html", "--json", tmp_path / "r.json") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "??.jpg is in no entry" in out
    assert json.loads((tmp_path / "r.json").read_text())[0]["found"]["unlisted"] and (tmp_path / "r.html").read_text().endswith("</html>")


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_annotations_in_other_codings(copy, coding, capsys):
    annotations(copy).write_bytes(annotations(copy).read_text().encode(coding))
    assert status(copy) == 0, capsys.readouterr()


def test_annotations_in_no_coding(copy, capsys):
    annotations(copy).write_bytes(b"[\xff\x00\x80" * 50)
    assert status(copy) == 1 and "is no valid JSON" in capsys.readouterr().out


MORTAL = """if os.getuid() == 0: # to whom nothing is forbidden: give up the right to read and write everything (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)
    import ctypes, struct
    libc, head, held = ctypes.CDLL(None, use_errno=True), struct.pack("II", 0x20080522, 0), ctypes.create_string_buffer(24)
    assert libc.capget(head, held) == 0, ctypes.get_errno()
    effective, *others = struct.unpack("6I", held.raw)
    assert libc.capset(head, struct.pack("6I", effective & ~6, *others)) == 0, ctypes.get_errno()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="giving up rights is asked of Linux")
@pytest.mark.parametrize("closed,name,code,words", [("", "prep", 2, "cannot be read (Permission denied)"), ("CUHK-PEDES", "prep", 1, "is missing"),
    ("CUHK-PEDES/reid_raw.json", "prep", 1, "cannot be read (Permission denied)"), ("CUHK-PEDES/imgs/cam_a", "prep", 1, "cannot be read (Permission denied)"), ("CUHK-PEDES", "pack", 2, "is missing")])
def test_folders_that_may_not_be_read(copy, closed, name, code, words):
    place = copy / closed
    mode = place.stat().st_mode
    place.chmod(0)
    try: done = run("python", "-c", f"import os, sys, cmlfa.{name}\n{MORTAL}cmlfa.{name}.main(sys.argv[1:])", copy, cwd="/")
    finally: place.chmod(mode)
    assert done.returncode == code and words in done.stdout + done.stderr and "Traceback" not in done.stderr, done.stdout + done.stderr


def test_nobody_reads_on(three):
    p = subprocess.Popen([BIN / "cmlfa_check", three], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p.stdout.close()
    assert p.wait(300) == 141 and p.stderr.read() == ""


def test_nested_and_second_name(three, tmp_path, capsys):
    shutil.copytree(three / "ICFG-PEDES", tmp_path / "ICFG-PEDES/ICFG-PEDES")
    (tmp_path / "ICFG-PEDES/ICFG-PEDES/ICFG_PEDES.json").rename(tmp_path / "ICFG-PEDES/ICFG-PEDES/ICFG-PEDES.json")
    assert status(tmp_path) == 0
    out = capsys.readouterr().out
    assert "ICFG-PEDES.json" in out and "read as it is" in out


def test_one_unreadable_data_set_does_not_silence_the_others(three, tmp_path, capsys):
    shutil.copytree(three / "CUHK-PEDES", tmp_path / "CUHK-PEDES")
    shutil.copytree(three / "RSTPReid", tmp_path / "RSTPReid")
    annotations(tmp_path).write_text("[{")
    assert status(tmp_path, "--json", tmp_path / "r.json") == 1
    out = capsys.readouterr().out
    assert "is no valid JSON" in out and "  can be trained on" in out
    assert [r["broken"] for r in json.loads((tmp_path / "r.json").read_text())] == [True, False]


def test_reports_hold_everything_and_no_script(copy, tmp_path):
    file = annotations(copy)
    entries = json.loads(file.read_text())
    evil = "cam_a/<img src=x onerror=alert(1)>.jpg"
    (copy / "CUHK-PEDES/imgs" / entries[0]["file_path"]).rename(copy / "CUHK-PEDES/imgs" / evil)
    (copy / "CUHK-PEDES/imgs" / evil).write_bytes(b"broken")
    entries[0]["file_path"] = evil
    for e in (entries[1], entries[40]): e["captions"] = ["<script>alert(2)</script> \x1b[31m \u202e red"]
    file.write_text(json.dumps(entries))
    done = run("cmlfa_check", copy, "--json", "r.json", "--html", "r.html", cwd=tmp_path)
    page, report = (tmp_path / "r.html").read_text(), json.loads((tmp_path / "r.json").read_text())[0]
    assert done.returncode == 1 and "\x1b" not in done.stdout and "Traceback" not in done.stderr
    assert "<script>" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    assert report["broken"] and report["found"]["unreadable"] and report["found"]["shared caption"]


def test_wrong_requests(tmp_path, three, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for args, words in ((["nowhere"], "there is no such folder"), ([annotations(three)], "is a file"), ([annotations(three), "--dataset_name", "CUHK-PEDES"], "there is no folder"), ([three / "RSTPReid"], "is a data set itself"), ([three, "--dataset_name", "Market"], "Market"),
                        ([three, "--workers", "0"], "workers"), ([three, "--dataset_name", "RSTPReid", "--json", "no/where.json"], "no/where.json")):
        code, err = status(*args), capsys.readouterr().err
        assert code == 2 and words in err.splitlines()[-1], err


def test_ctrl_c_is_a_sentence(copy):
    images, entries = copy / "CUHK-PEDES/imgs", json.loads(annotations(copy).read_text())
    many = [e | {"file_path": f"{e['file_path']}.{k}.jpg"} for e in entries for k in range(64)] # 12,288 names: enough to be interrupted
    for e in many: (images / e["file_path"]).hardlink_to(images / e["file_path"].rsplit(".", 2)[0])
    annotations(copy).write_text(json.dumps(many))
    code = "import sys, cmlfa.doctor as d, cmlfa.prep as p; real = d.decode; d.decode = lambda data: (print('ready', flush=True), real(data))[1]; p.main(sys.argv[1:])"
    p, limit = Command("python", "-c", code, copy, "--workers", "2", cwd=copy), time.monotonic() + 300
    while not p.said("ready") and p.poll() is None and time.monotonic() < limit: time.sleep(.01) # the first image is being looked at
    _, err = p.interrupt()
    assert p.returncode == 130 and "stopped by Ctrl-C" in err and "Traceback" not in err, err


def test_an_interrupted_drawing_is_named(tmp_path):
    p = Command("cmlfa_synth", tmp_path, "--size", "demo", cwd=tmp_path)
    limit = time.monotonic() + 300
    while len(list(tmp_path.glob(".*/imgs/*/*.jpg"))) < 20 and time.monotonic() < limit: time.sleep(.05)
    _, err = p.interrupt()
    assert p.returncode == 130 and "the same command goes on" in err and "Traceback" not in err, err
    part, = tmp_path.iterdir()
    small = run("cmlfa_synth", tmp_path, "--size", "small", "--seed", "1", cwd=tmp_path, check=True)
    assert f"note: {part} holds" in small.stdout and "(size demo, seed 0, generator" in small.stdout
    for args, words in ((["--size", "demo"], "holds size small, seed 1"), (["--size", "small"], "seed 0, generator 2 was asked for; remove it or choose another OUT")):
        done = run("cmlfa_synth", tmp_path, *args, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_helpers_end_with_a_parent_that_is_killed(tmp_path):
    p, limit = Command("cmlfa_synth", tmp_path, "--size", "demo", "--workers", "2", cwd=tmp_path), time.monotonic() + 300
    while len(list(tmp_path.glob(".*/imgs/*/*.jpg"))) < 5 and time.monotonic() < limit: time.sleep(.05)
    helpers = psutil.Process(p.pid).children()
    p.kill()
    assert len(helpers) == 2 and not psutil.wait_procs(helpers, 100)[1]


def test_training_refuses_what_is_broken_and_can_go_on_without(copy, tmp_path):
    entries = json.loads(annotations(copy).read_text())
    train = [e for e in entries if e["split"] == "train"]
    (copy / "CUHK-PEDES/imgs" / train[0]["file_path"]).unlink()
    broken = copy / "CUHK-PEDES/imgs" / train[5]["file_path"]
    broken.write_bytes(broken.read_bytes()[:-300])
    next(e for e in entries if e["split"] == "test")["file_path"] = train[9]["file_path"] # one file in both
    annotations(copy).write_text(json.dumps(entries))
    command = ["cmlfa_train", *PUBLISHED.format(copy).split(), *TINY, "--num_epoch", "1"]
    refused = run(*command, cwd=tmp_path)
    assert refused.returncode == 2 and f"cmlfa_check {copy}" in refused.stderr and "--allow_missing" in refused.stderr and "Traceback" not in refused.stderr
    done = run(*command, "--allow_missing", cwd=tmp_path, check=True)
    assert "going on without 3 of 192 images (1 missing, 1 truncated, 1 leak)" in done.stdout
    assert "48 images" in done.stdout # the test has all of its own


def test_scripts(data, tmp_path):
    images, entries = data / "CUHK-PEDES/imgs", json.loads(annotations(data).read_text())
    with open(tmp_path / "t.csv", "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["path", "identity", "caption"])
        for e in entries: out.writerows([e["file_path"], f"p{e['id']}", c] for c in e["captions"])
    def script(name, *args): return subprocess.run([sys.executable, ROOT / "data_prep" / name, *map(str, args)], cwd=tmp_path, capture_output=True, text=True)
    done = script("from_table.py", "t.csv", images, "own")
    assert done.returncode == 0 and "Next: cmlfa_check own" in done.stdout, done.stderr
    done = script("prepare.py", "CUHK-PEDES", data, "laid", "--copy")
    assert done.returncode == 0 and "Next: cmlfa_pack laid" in done.stdout, done.stderr
    done = script("prepare.py", "RSTPReid", data, "laid")
    assert done.returncode == 2 and done.stderr.startswith("prepare.py: ") and "data_captions.json" in done.stderr and len(done.stderr.splitlines()) == 1
    (tmp_path / "bad.csv").write_text("path,identity,caption\na.jpg,1,A coat, red.\n")
    done = script("from_table.py", "bad.csv", images, "other")
    assert done.returncode == 2 and "line 2 has more fields than line 1" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "other").exists()
