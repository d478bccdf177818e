"""Long trials: python tests/faults/soak.py [--quick] [PART ...], or make soak.

Each part does one thing to the project again and again, counts what was tried and what survived, and looks for what was lost.
What it finds goes into benchmarks/soak.json and from there into the table of tests/faults/README.md. The tests use some parts at a small scale."""
import argparse
import asyncio
import ctypes
import datetime
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
REPORT, TABLE = ROOT / "benchmarks/soak.json", HERE / "README.md"
sys.path.append(str(HERE.parent)) # for test_resume, whose training is used here
processes = multiprocessing.get_context("forkserver") # imports once, then forks: a start costs hundredths of a second
processes.set_forkserver_preload(["cmlfa.train", "cmlfa.index"])


# Processes that may be killed

def _run(job, args, out):
    os.setpgid(0, 0)
    if sys.platform == "linux": ctypes.CDLL(None).prctl(1, signal.SIGKILL) # it ends with the server that has forked it, which ends with us
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for n in (1, 2): os.dup2(fd, n)
    import torch
    torch.set_num_threads(1)
    job(*args)


def start(work: Path, job, *args):
    "A function in a process of its own, which heads a group; what it says goes into work/out.txt."
    p = processes.Process(target=_run, args=(job, args, work / "out.txt"))
    p.start()
    return p


def kill(p):
    "As kill -9 does it, with all that it has started."
    try: os.killpg(p.pid, signal.SIGKILL)
    except ProcessLookupError: p.kill() # it does not head its group yet
    p.join()


def grown(p, file: Path, work: Path):
    "Wait until the job has written something more; on a busy machine it would otherwise be killed before it has begun."
    size = lambda: file.stat().st_size if file.exists() else 0
    before, limit = size(), time.monotonic() + 300
    while size() == before and p.exitcode is None and time.monotonic() < limit: time.sleep(.002)
    assert p.exitcode is None and size() > before, (work / "out.txt").read_text()


def end(p, work: Path):
    "Let it come to its end."
    p.join(600)
    if p.exitcode is None: kill(p)
    assert p.exitcode == 0, (work / "out.txt").read_text()


def nothing(): pass


def killed(times: int, work: Path, job, args: tuple, look, reset, seed: int = 0) -> dict:
    "Start a job, kill it at a random moment, look, go on with it; whenever it has come to its end, begin anew. `look` gives what is there: how much, and everything once it is finished."
    end(start(work, nothing), work) # the forkserver has imported everything; else the first run would be timed with that
    begun = time.monotonic()
    end(start(work, job, *args), work)
    seconds, whole = time.monotonic() - begun, look()[1]
    rng, tried, wrong, before, moments = random.Random(seed), 0, [], 0, set()
    reset()
    while tried < times:
        p = start(work, job, *args)
        p.join(rng.uniform(0, .7 * seconds))
        if p.exitcode is None:
            kill(p)
            tried += 1
            have = look()[0]
            moments.add(have)
            if have < before: wrong.append(f"kill {tried}: {have} were left of {before}")
            before = have
        else:
            end(p, work)
            if look()[1] != whole: wrong.append(f"after kill {tried}, the result is another one")
            reset()
            before = 0
    end(start(work, job, *args), work)
    if look()[1] != whole: wrong.append("at the end, the result is another one")
    if len(moments) < min(times, 20) // 4: wrong.append(f"the kills came at {len(moments)} different moments only, which shows little")
    return dict(tried=tried, survived=tried - len(wrong), lost=len(wrong), wrong=wrong, moments=len(moments))


# Jobs, and what is left of them

def draw(out):
    from cmlfa.synth import write_synth
    write_synth(out, "small", workers=1, progress=False)


def tree(folder):
    "Every file below a folder."
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def kill_drawing(times: int, work: Path) -> dict:
    "cmlfa_synth: the images are those of a drawing that nobody disturbed, byte for byte."
    out = work / "drawn"
    def look(): return sum(1 for _ in out.glob("*/imgs/*/*.jpg")) + sum(1 for _ in out.glob(".*/imgs/*/*.jpg")), tree(out)
    return killed(times, work, draw, (out,), look, lambda: shutil.rmtree(out))


def pack(root):
    import cmlfa.pack as p
    p.BLOCK = 4 # more moments to be killed in
    p.write_pack(root, "CUHK-PEDES", (192, 96), workers=1, progress=False)


def kill_packing(times: int, work: Path) -> dict:
    "cmlfa_pack: every byte of the pack is as it would have been."
    draw(work / "data")
    folder = work / "data/CUHK-PEDES/packed"
    def look():
        done = folder / ".192x96.part/done"
        return 10**6 if (folder / "192x96").exists() else len(done.read_text().split()) if done.exists() else 0, tree(folder)
    return killed(times, work, pack, (work / "data",), look, lambda: shutil.rmtree(folder))


def training(work: Path, *flags) -> list:
    "The command line of a small training that uses everything."
    from conftest import PUBLISHED, TINY
    from test_resume import FLAGS
    return [*PUBLISHED.format(work / "data").split(), *TINY, *FLAGS, *map(str, flags)]


def train(argv, folder, at=None):
    import test_resume
    folder.mkdir(exist_ok=True)
    test_resume.train(argv, folder, at)


def state_of(folder):
    "The step of the newest checkpoint that is whole, and everything that must be the same at the end."
    import test_resume
    from cmlfa.checkpoint import newest, places
    run = folder / "logs/cmlfa"
    if not run.is_dir() or not places(run): return 0, None
    step = int(newest(run)[2]["step"])
    if not (run / "metrics.json").exists(): return step, None
    return step, [test_resume.history(folder), *(test_resume.weights(folder, name) for name in ("last", "best"))]


def kill_training(times: int, work: Path) -> dict:
    "cmlfa_train --resume: the losses and the weights are those of the run that nobody disturbed, bit for bit."
    draw(work / "data")
    folder = work / "run"
    return killed(times, work, train, (training(work, "--resume"), folder), lambda: state_of(folder), lambda: shutil.rmtree(folder))


def write_checkpoints(folder, count):
    "One checkpoint after the other, each full of its own number; each that was written is noted down."
    import torch
    from cmlfa.checkpoint import newest, places, rotate
    from cmlfa.share import write_atomic
    folder.mkdir(exist_ok=True)
    first = newest(folder)[2]["step"] + 1 if places(folder) else 0
    for n in range(first, first + count):
        write_atomic({f"t{k}": torch.full((64, 4096), float(n)) for k in range(8)}, folder / "next.safetensors", step=n)
        rotate(folder, 2)
        with open(folder / "written", "a") as f: print(n, file=f, flush=True)


def kill_checkpoints(times: int, work: Path) -> dict:
    "Writing a checkpoint: the newest whole one is the last that was said to be written, or the one after it, and all of one step."
    from cmlfa.checkpoint import newest
    folder, rng, tried, wrong, torn = work / "run", random.Random(0), 0, [], 0
    while tried < times:
        p = start(work, write_checkpoints, folder, 10**6)
        grown(p, folder / "written", work)
        time.sleep(rng.uniform(0, .3))
        kill(p)
        tried, torn = tried + 1, torn + (folder / "next.part").exists()
        said = int((folder / "written").read_text().split("\n")[-2]) # the last whole line
        _, tensors, meta, passed = newest(folder)
        if passed or not said <= meta["step"] <= said + 1 or any((t != meta["step"]).any() for t in tensors.values()): wrong.append(f"kill {tried}: step {meta['step']} after {said}; {passed}")
    return dict(tried=tried, survived=tried - len(wrong), lost=len(wrong), wrong=wrong, while_writing=torn)


def tiny_model(folder: Path) -> Path:
    "A small model with random weights, saved."
    import torch
    from cmlfa.clip import ARCHS
    from cmlfa.model import CMLFA
    torch.manual_seed(0)
    CMLFA(ARCHS["tiny"], prototypes=2, lfa_layers=1, losses="itc").save_pretrained(folder)
    return folder


def index_photos(photos, store, model):
    from cmlfa.index import index
    index(photos, store, model, batch_size=4)


def kill_indexing(times: int, work: Path) -> dict:
    "cmlfa_index: every image that was embedded stays, and at the end all are there with their vectors."
    from cmlfa.store import Store
    draw(work / "data")
    store, photos = work / "store", work / "data/CUHK-PEDES/imgs"
    def look():
        if not (store / "items.sqlite").exists(): return 0, None
        with Store(store, write=True) as s: # as the next start opens it; whoever was killed has left the lock
            return len(s), {i.path: np.array(s.vectors[i.row]).round(2).tobytes() for i in s.known().values()} if len(s) == 192 else None
    return killed(times, work, index_photos, (photos, store, tiny_model(work / "model")), look, lambda: shutil.rmtree(store))


DIM = 32
def vector_of(name: str) -> np.ndarray:
    "A unit vector that belongs to a name and to no other."
    v = np.random.default_rng(zlib.crc32(name.encode())).normal(size=DIM)
    return (v / np.linalg.norm(v)).astype(np.float32)


def write_store(store, seed):
    "Add, replace and remove images for ever; what was written is noted down when the store says that it is."
    from cmlfa.items import Item, Model
    from cmlfa.store import Store
    rng = random.Random(seed)
    with Store(store, Model("soak", "f" * 64, DIM), write=True) as s, open(store.with_suffix(".log"), "a", buffering=1) as log:
        for turn in range(10**9):
            known = list(s.known().values())
            new = [Item("/photos", f"{rng.randrange(2000)}.jpg", hash=f"{seed}.{turn}.{k}") for k in range(rng.choice((1, 8, 64)))]
            s.put(new, np.stack([vector_of(i.hash) for i in new]))
            print(json.dumps({i.path: i.hash for i in new}), file=log)
            if len(known) > 500 and not turn % 5:
                gone = rng.sample(known, 20)
                s.remove([i for i in gone if i.path not in {n.path for n in new}])
                print(json.dumps({i.path: None for i in gone if i.path not in {n.path for n in new}}), file=log)
            if len(known) > 500 and turn % 40 == 7: s.reindex(rng.choice(("hnsw", "exact")))


def whole_store(store, log) -> list[str]: # what is wrong with it
    "Does the store know what it said it had written, each image with its own vector?"
    from cmlfa.store import Store
    said, last = {}, {}
    for line in log.read_text().splitlines() if log.exists() else []:
        try: last = json.loads(line)
        except ValueError: continue # the line was cut off by the kill
        said |= last
    with Store(store, write=True) as s:
        known = {i.path: i for i in s.known().values()}
        wrong = [f"{p}: has another vector" for p, i in known.items() if np.abs(s.vectors[i.row] - vector_of(i.hash)).max() > 2e-3]
        differ = [p for p in said.keys() | known.keys() if (known[p].hash if p in known else None) != said.get(p)]
        # one change may be in the store and not yet in the log
        turns = {known[p].hash.rsplit(".", 1)[0] for p in differ if p in known}
        if len(turns) > 1 or len(differ) > 64: wrong.append(f"{len(differ)} images are not as they were written")
        with open(log, "a") as f: print("\n" + json.dumps({p: known[p].hash if p in known else None for p in differ}), file=f)
    return wrong


def kill_storing(times: int, work: Path) -> dict:
    "Writing into a store: whatever it said was written is there, each image with its own vector."
    store, rng, tried, lost, wrong = work / "store", random.Random(0), 0, 0, []
    while tried < times:
        p = start(work, write_store, store, tried)
        grown(p, store.with_suffix(".log"), work)
        time.sleep(rng.uniform(0, .5))
        kill(p)
        tried += 1
        bad = whole_store(store, store.with_suffix(".log"))
        lost += bool(bad)
        wrong += [f"kill {tried}: {w}" for w in bad[:3]]
    return dict(tried=tried, survived=tried - lost, lost=lost, wrong=wrong)


# Load

def read_store(store, results, until, seed):
    "Search for ever; in each answer every score is that of the image beside it, sorted, nobody twice. Which images they were is written down for `moments_of`."
    from cmlfa.store import Store
    rng, asked, wrong, answers = np.random.default_rng(seed), 0, [], open(Path(results, f"{seed}.jsonl"), "w")
    s = Store(store)
    while time.time() < until:
        if not asked % 50: s.close(); s = Store(store)
        q = rng.normal(size=DIM).astype(np.float32)
        q /= np.linalg.norm(q)
        hits, = s.search(q[None], 10, all_of_them=bool(asked % 3 == 0))
        asked += 1
        scores, names = [h for h, _ in hits], [i.path for _, i in hits]
        true = [float(q @ vector_of(i.hash).astype(np.float16).astype(np.float32)) for _, i in hits]
        if len(hits) != 10 or len(set(names)) != 10 or scores != sorted(scores, reverse=True) or max(abs(a - b) for a, b in zip(scores, true)) > 5e-3: wrong.append(f"{names} {scores} {true}")
        print(json.dumps([i.hash for _, i in hits]), file=answers)
    s.close()
    answers.close()
    Path(results, f"{seed}.json").write_text(json.dumps(dict(asked=asked, wrong=wrong[:5], n=len(wrong))))


def moments_of(answers: list[list[str]], log: list[str]) -> tuple[set[int], int]: # moments that were seen; answers of no moment
    "Was there, for each answer, a moment at which all of its images were in the store? The writer's log says when each came and went."
    came, went, now = {}, {}, {}
    for n, line in enumerate(log):
        for path, name in json.loads(line).items():
            if path in now: went[now.pop(path)] = n
            if name: came[name] = n; now[path] = name
    last = len(log) # what was written and not noted down any more
    spans = [(max(came.get(h, last) for h in a), min(went.get(h, last + 1) for h in a)) for a in answers]
    return {first for first, _ in spans}, sum(first >= end for first, end in spans)


def store_load(seconds: float, work: Path) -> dict:
    "One writer adds, replaces, removes and indexes, eight readers search: every answer is of one moment."
    store = work / "store"
    writer = start(work, write_store, store, 0)
    while not (store.with_suffix(".log").exists() and len(store.with_suffix(".log").read_text().splitlines()) > 30): time.sleep(.1)
    until = time.time() + seconds
    (work / "said").mkdir()
    readers = []
    for n in range(8):
        (work / f"reader{n}").mkdir()
        readers.append(start(work / f"reader{n}", read_store, store, work / "said", until, n))
    for r in readers: r.join(seconds + 300)
    alive = writer.exitcode is None
    kill(writer)
    for n, r in enumerate(readers): assert r.exitcode == 0, (work / f"reader{n}/out.txt").read_text()[-3000:]
    assert alive, (work / "out.txt").read_text()[-3000:]
    said = [json.loads(f.read_text()) for f in (work / "said").glob("*.json")]
    log = [line for line in store.with_suffix(".log").read_text().split("\n")[:-1]]
    seen, mixed = moments_of([json.loads(a) for f in (work / "said").glob("*.jsonl") for a in f.read_text().splitlines()], log)
    tried, lost = sum(s["asked"] for s in said), sum(s["n"] for s in said) + mixed
    wrong = [w for s in said for w in s["wrong"]] + [f"{mixed} answers are of no one moment"] * bool(mixed)
    return dict(tried=tried, survived=tried - lost, lost=lost, wrong=wrong, writes=len(log), moments=len(seen), torn=whole_store(store, store.with_suffix(".log")))


# Long runs

def drift(values: list[float]) -> float:
    "By what share the last quarter lies above the second; of fewer than four samples nobody can say."
    n = len(values) // 4
    return float("nan") if not n else statistics.median(values[-n:]) / statistics.median(values[n:2 * n]) - 1


def long_run(epochs: int, work: Path) -> dict:
    "A training of many epochs, with evaluation and checkpoints: memory is flat to 2%, and no file stays open."
    draw(work / "data")
    folder, rows = work / "run", []
    argv = training(work, "--num_epoch", epochs, "--checkpoint_steps", 0)
    p = start(work, train, argv, folder)
    p_, record, seen = psutil.Process(p.pid), folder / "logs/cmlfa/history.jsonl", 0
    while p.exitcode is None:
        time.sleep(.05)
        n = record.read_text().count('"t2i"') if record.exists() else 0 # evaluations
        if n <= seen: continue
        seen = n
        try: rows.append((12 * n, p_.memory_info().rss / 2**20, p_.num_fds()))
        except psutil.Error: break
    end(p, work)
    memory, files = [r[1] for r in rows], [r[2] for r in rows]
    n = len(files) // 4
    tried, done = 12 * epochs, sum("loss" in r for r in map(json.loads, record.read_text().splitlines()))
    assert len(rows) > .9 * epochs, f"memory was sampled in {len(rows)} epochs only"
    return dict(tried=tried, survived=done, lost=tried - done, epochs=epochs, samples=len(rows), memory_mb=[round(m, 1) for m in memory[::max(1, len(memory) // 40)]], memory_drift=round(drift(memory), 4),
                open_files=[min(files[n:]), max(files[n:])], files_drift=statistics.median(files[-n:]) - statistics.median(files[n:2 * n]))


# The explorer

WARM = 150 # questions of each visitor before memory is watched: after about a hundred, Python's table of names grows once, by 7 MB
VISITORS = 20 # each has a process behind the page, a tenth of a gigabyte; half of one where processes are not forked

def taken(server: psutil.Process) -> float:
    "Memory of a process and all that it has started, in MB; what n of them share counts a n-th for each."
    total = 0
    for p in [server, *server.children(recursive=True)]:
        try: m = p.memory_full_info()
        except psutil.Error: continue # it has just ended
        total += getattr(m, "pss", m.rss) # only Linux tells what is shared
    return total / 2**20

class Client:
    "A visitor without a browser: the page, its channel, and the two things one needs of it."
    def __init__(self, url): self.url, self.models, self.asked, self.errors, self.times, self.lost = url, {}, 0, [], [], None

    def page(self):
        c = HTTPConnection(self.url.split("/")[2], timeout=600)
        c.request("GET", "/")
        r = c.getresponse()
        text = r.read().decode()
        assert r.status == 200, r.status
        self.cookie = "; ".join(v.split(";")[0] for k, v in r.getheaders() if k.lower() == "set-cookie")
        self.kernel = re.search(r'"kernelId":\s*"([^"]+)"', text)[1]

    async def send(self, kind, metadata={}, **content):
        header = dict(msg_id=os.urandom(8).hex(), msg_type=kind, session=self.kernel, username="", version="5.3", date="2026-01-01T00:00:00Z")
        await self.ws.write_message(json.dumps(dict(channel="shell", header=header, parent_header={}, metadata=metadata, content=content, buffers=[])))

    async def hear(self):
        "One message; what it says of the widgets is remembered."
        m = await self.ws.read_message()
        assert m is not None, "the channel was closed"
        if isinstance(m, bytes):
            starts = np.frombuffer(m, ">u4", 1 + int(np.frombuffer(m, ">u4", 1)[0]))[1:]
            m = m[starts[0]:starts[1] if len(starts) > 1 else None]
        m = json.loads(m)
        data, kind = m.get("content", {}).get("data", {}), m["header"]["msg_type"]
        if kind == "error": self.errors.append(str(m["content"])[:500])
        if data.get("method") == "update_states":
            for k, v in data["states"].items(): self.models.setdefault(k, {}).update(v["state"])
        elif kind in ("comm_open", "comm_msg") and "state" in data: self.models.setdefault(m["content"]["comm_id"], {}).update(data["state"])

    async def listen(self):
        "Hear all there is, as a page does: whoever does not read is soon cut off."
        try:
            while True:
                await self.hear()
                self.news.set()
        except Exception as e:
            self.lost = e
            self.news.set()

    async def until(self, there, seconds=300):
        "Wait for something that is heard."
        async def heard():
            while not there():
                if self.lost: raise self.lost
                self.news.clear()
                await self.news.wait()
        await asyncio.wait_for(heard(), seconds)

    def find(self, **wanted): return next((k for k, v in self.models.items() if all(v.get(a) == b for a, b in wanted.items())), None)
    def answers(self): return [v for v in self.models.values() if v.get("_model_name") == "HTMLModel" and re.search(r"\d+ images?.* in [\d,]+ ms", str(v.get("value", "")))]

    async def open(self):
        from tornado.httpclient import HTTPRequest
        from tornado.websocket import websocket_connect
        address = f"{self.url.replace('http', 'ws', 1)}api/kernels/{self.kernel}/channels"
        self.ws = await websocket_connect(HTTPRequest(address, headers={"Cookie": self.cookie, "Origin": self.url.rstrip("/")}, request_timeout=300), max_message_size=2**28)
        self.news = asyncio.Event()
        self.ear = asyncio.create_task(self.listen())
        for _ in range(150): # until the explorer stands in the page
            control = os.urandom(16).hex()
            await self.send("comm_open", {"version": "1.0.0"}, comm_id=control, target_name="jupyter.widget.control", data={})
            await self.send("comm_msg", comm_id=control, data=dict(method="request_states"))
            try: return await self.until(lambda: self.find(description="Describe a person"), 2)
            except asyncio.TimeoutError: pass
        raise AssertionError("the explorer did not appear")

    async def ask(self, text):
        "Type a description; wait for the answer to it."
        box, begun = self.find(description="Describe a person"), time.monotonic()
        for v in self.answers(): v["value"] = "" # it has been read
        await self.send("comm_msg", comm_id=box, data=dict(method="update", state=dict(value=text), buffer_paths=[]))
        await self.until(self.answers)
        self.asked += 1
        self.times.append(1000 * (time.monotonic() - begun))


def explorer_load(seconds: float, work: Path) -> dict:
    "Visitors without browsers, each with a process of its own behind the page: no error, and memory is flat."
    from concurrent.futures import ThreadPoolExecutor
    from cmlfa.index import sentences
    draw(work / "data")
    clients = VISITORS if seconds > 60 else 2
    env = os.environ | dict(XDG_CACHE_HOME=str(work / "cache"), OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore", TOKENIZERS_PARALLELISM="false")
    log = work / "log.txt"
    with open(log, "w") as f: server = subprocess.Popen([Path(sys.executable).with_name("cmlfa_explore"), "--port", "0", "--cpu", "--data", work / "data"], cwd=work, env=env, stdout=f, stderr=f, start_new_session=True)
    try:
        while not (found := re.search(r"http://\S+", log.read_text())):
            assert server.poll() is None, log.read_text()
            time.sleep(.2)
        visitors, memory = [Client(found[0]) for _ in range(clients)], []
        with ThreadPoolExecutor(2) as pool: list(pool.map(Client.page, visitors)) # two at a time: without forking, each starts a process that imports PyTorch
        async def visit(v, seed, over):
            rng = random.Random(seed)
            texts = sentences(500, seed)
            await v.ask("a person in a red coat")
            while not over.is_set():
                await v.ask(rng.choice(texts) + f" {v.asked}")
                await asyncio.sleep(rng.uniform(.5, 1.5))
        async def watch(over):
            begun = time.time()
            while min(v.asked for v in visitors) < WARM and time.time() - begun < seconds: await asyncio.sleep(1)
            begun = time.time()
            while time.time() - begun < seconds:
                memory.append(await asyncio.to_thread(taken, psutil.Process(server.pid)))
                await asyncio.sleep(2)
            over.set()
        async def all_of_it():
            for v in visitors: await v.open()
            over = asyncio.Event()
            await asyncio.gather(*(visit(v, n, over) for n, v in enumerate(visitors)), watch(over))
        asyncio.run(all_of_it())
        said = log.read_text()
    finally:
        for p in psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []: p.kill()
        server.kill()
    wrong = [e for v in visitors for e in v.errors] + re.findall(r".*(?:Traceback|ERROR|CRITICAL).*", said)
    tried, times = sum(v.asked for v in visitors), sorted(t for v in visitors for t in v.times)
    return dict(tried=tried, survived=tried - len(wrong), lost=len(wrong), wrong=wrong[:5], clients=clients, answer_ms_p50=round(times[len(times) // 2]), answer_ms_p95=round(times[int(.95 * len(times))]),
                memory_mb=[round(m) for m in memory[::max(1, len(memory) // 40)]], memory_drift=round(drift(memory), 4))


# Inputs from strangers

def fuzzing(seconds: float, work: Path) -> dict:
    "annotations, words and configurations that a coverage-guided fuzzer makes up, so long for each; lost: neither an answer nor a sentence"
    sys.path.append(str(ROOT / "tools"))
    from concurrent.futures import ThreadPoolExecutor
    from fuzz import TARGETS, fuzz
    with ThreadPoolExecutor(2) as pool: reports = list(pool.map(lambda name: fuzz(name, int(seconds)), TARGETS))
    tried, found = sum(r["tried"] for r in reports), [f"{r['target']}/{name}" for r in reports for name in r["found"]]
    return dict(tried=tried, survived=tried - len(found), lost=len(found), wrong=found[:5], targets={r["target"]: [r["tried"], r["kept"]] for r in reports})


# All of it

PARTS = { # name: (what, at full scale, at --quick)
    "kill drawing": (kill_drawing, 20, 2), "kill packing": (kill_packing, 20, 2), "kill training": (kill_training, 20, 2), "kill checkpoints": (kill_checkpoints, 20, 2),
    "kill indexing": (kill_indexing, 20, 2), "kill storing": (kill_storing, 20, 2),
    "store load": (store_load, 300, 5), "long run": (long_run, 200, 8), "explorer load": (explorer_load, 300, 10),
    "fuzzing": (fuzzing, 600, 10),
}


def run(name: str, quick: bool = False) -> dict:
    "One part in a folder of its own."
    fn, full, small = PARTS[name]
    scale, begun = small if quick else full, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as work:
        try: found = fn(scale, Path(work))
        except Exception: found = dict(tried=scale, survived=0, lost=scale, wrong=[traceback.format_exc()[-3000:].replace(work, "WORK")])
    flat = abs(found.get("memory_drift", 0)) <= .02 and found.get("files_drift", 0) <= 0 or quick # a short run has no quarters to speak of
    return found | dict(scale=scale, seconds=round(time.monotonic() - begun, 1), good=not found["lost"] and not found.get("torn") and flat)


def facts(found: dict) -> str:
    "What else was measured, in words."
    say = {"moments": "{} different moments", "while_writing": "{} in the middle of a file", "writes": "{} writes meanwhile", "clients": "{} clients", "answer_ms_p50": "median answer {} ms", "answer_ms_p95": "95% within {} ms",
           "epochs": "{} epochs", "open_files": "{0[0]} to {0[1]} open files"}
    out = [text.format(found[k]) for k, text in say.items() if k in found]
    out += [f"{name} {tried:,}, of which {kept:,} reached something new" for name, (tried, kept) in found.get("targets", {}).items()]
    if m := found.get("memory_mb"): out.append(f"memory {min(m[len(m) // 4:]):,.0f} to {max(m[len(m) // 4:]):,.0f} MB after the first quarter, drift {100 * found['memory_drift']:+.1f}%")
    return ", ".join(out)


def table(report: dict) -> str:
    "The report as Markdown."
    rows = ["| part | tried | survived | lost | more | seconds | date |", "|---|---|---|---|---|---|---|"]
    for name, r in report["parts"].items(): rows.append(f"| {name}: {PARTS[name][0].__doc__.strip()} | {r['tried']:,} | {r['survived']:,} | {r['lost']} | {facts(r)}{'' if r['good'] else ' **not as promised**'} | {r['seconds']:,.0f} | {r['date']} |")
    missing = [n for n in PARTS if n not in report["parts"]]
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    note = f"Measured on {report['cores']} cores ({report['processor']}), Python {report['python']}, {versions}, with other work on the machine."
    return "\n".join([*rows, "", note] + ([f"Not run there: {', '.join(missing)}."] if missing else []))


def keep(name: str, found: dict):
    "Write one part's report, and the table."
    from cmlfa.bench import machine
    old = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {"parts": {}}
    parts = old["parts"] | {name: found | {"date": datetime.date.today().isoformat()}}
    report = dict(command="make soak", date=datetime.date.today().isoformat()) | machine() | dict(parts={n: parts[n] for n in PARTS if n in parts})
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_table(report)


def write_table(report: dict):
    "Put the report into the README, between its two marks."
    text = TABLE.read_text(encoding="utf-8")
    before, after = text.split("<!-- soak -->")[0], text.split("<!-- /soak -->")[1]
    TABLE.write_text(f"{before}<!-- soak -->\n{table(report)}\n<!-- /soak -->{after}", encoding="utf-8")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none is named")
    p.add_argument("--quick", action="store_true", help="a small scale, to try it; nothing is written down")
    p.add_argument("--visitors", type=int, default=VISITORS, help=f"of the explorer (default {VISITORS})")
    a = p.parse_args()
    VISITORS = a.visitors
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) # what was started ends as well
    if unknown := set(a.parts) - set(PARTS): p.error(f"there is no part {unknown.pop()!r}")
    bad = []
    for name in a.parts or PARTS:
        found = run(name, a.quick)
        if not found["good"]: bad.append(name)
        print(f"{name}: tried {found['tried']:,}, survived {found['survived']:,}, lost {found['lost']}; {facts(found)}; {found['seconds']} s", *found.get("wrong", []), sep="\n  ", flush=True)
        if not a.quick: keep(name, found)
    sys.exit(f"not as promised: {', '.join(bad)}" if bad else 0)
