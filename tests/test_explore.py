"""The explorer as a page: a browser visits it at the size of a desk and of a phone, and strangers knock at it."""
import asyncio
import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from conftest import BIN, run
from PIL import Image

EVIL = "<img src=x onerror=window.hacked=1>" # a file's name; in words, menus and captions too
HOSTILE = ["<script>window.hacked=1</script> in red", EVIL, "\u202egnp.taoc der a ni nosrep", "'\"><svg/onload=window.hacked=1>", "a person {{7*7}} ${7*7} %s \x00"]
SCREENS = os.environ.get("CMLFA_SCREENSHOTS") # a folder to keep the pictures in; a temporary one if it is not set


@pytest.fixture(scope="module")
def gallery(data, tmp_path_factory):
    "The small data set, with strings in it that would like to be programs."
    root = tmp_path_factory.mktemp("evil") / "data"
    shutil.copytree(data, root)
    folder = root / "CUHK-PEDES"
    entries, known = json.loads((folder / "reid_raw.json").read_text()), json.loads((folder / "attributes.json").read_text())
    for n, e in enumerate(e for e in entries if e["split"] == "test"):
        if n % 4: continue
        old, new = e["file_path"], f"{Path(e['file_path']).parent}/{EVIL}{n}.jpg"
        (folder / "imgs" / old).rename(folder / "imgs" / new)
        e["file_path"], e["captions"] = new, [c + f" {EVIL}" for c in e["captions"]]
        for r in known["images"]:
            if r["path"] == old: r["path"], r["shot"]["camera"] = new, EVIL
    (folder / "reid_raw.json").write_text(json.dumps(entries))
    (folder / "attributes.json").write_text(json.dumps(known))
    return root


def serve(folder, *args):
    "Start the page; its process, its address, its log."
    env = os.environ | dict(XDG_CACHE_HOME=str(folder / "cache"), OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore", TOKENIZERS_PARALLELISM="false")
    log = folder / "log.txt"
    with open(log, "w") as f: process = subprocess.Popen([BIN / "cmlfa_explore", "--port", "0", "--cpu", *map(str, args)], cwd=folder, env=env, stdout=f, stderr=f, start_new_session=True)
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"http://\S+", log.read_text()): return process, found[0], log
        time.sleep(.1)
    process.kill()
    pytest.fail(log.read_text())


def stop(process):
    "Ctrl-C; what it returned, and whether its kernels are gone."
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    try: code = process.wait(200)
    finally: process.kill()
    psutil.wait_procs(kernels, timeout=100)
    return code, [k for k in kernels if k.is_running() and k.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def page(gallery, tmp_path_factory):
    "One server for all visits; at the end Ctrl-C, and a look into its log."
    process, url, log = serve(tmp_path_factory.mktemp("page"), "--data", gallery)
    yield url
    assert stop(process) == (0, []), log.read_text()
    said = log.read_text()
    assert said.rstrip().endswith("The page has ended.")
    assert not re.search(r"Traceback|ERROR|CRITICAL|Exception|not trusted|websocket_ping", said), said


@pytest.fixture(scope="module")
def browser():
    "Headless Chromium: the system's, or Playwright's own."
    def without(why):
        if os.environ.get("CI"): pytest.fail(f"{why}; in CI there must be a browser")
        pytest.skip(f"{why}; make browser gets one")
    try: from playwright.sync_api import Error, sync_playwright
    except ImportError: without("Playwright is not installed")
    own = next((p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome") if Path(p).exists()), None)
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as p:
        try: b = p.chromium.launch(executable_path=own, args=quiet)
        except Error: without("Chromium cannot be started")
        yield b
        b.close()


class Visit:
    "A window on the page; everything that goes wrong in it is written down."
    def __init__(self, browser, url, size, screens):
        self.wrong, self.screens, self.name = [], screens, f"{size[0]}x{size[1]}"
        self.window = browser.new_context(viewport=dict(width=size[0], height=size[1]), reduced_motion="reduce")
        self.page = p = self.window.new_page()
        p.set_default_timeout(120_000)
        p.on("console", lambda m: m.type == "error" and self.wrong.append(m.text))
        p.on("pageerror", lambda e: self.wrong.append(str(e)))
        p.on("response", lambda r: r.status >= 400 and self.wrong.append(f"{r.status} {r.url}"))
        p.on("dialog", lambda d: (self.wrong.append(f"dialog {d.message}"), d.dismiss()))
        p.on("request", lambda r: r.url.startswith((url.split("?")[0], url.replace("http", "ws", 1), "data:", "blob:")) or self.wrong.append(f"asked elsewhere: {r.url}"))
        p.goto(url)
        p.get_by_role("button", name="Surprise me").wait_for(timeout=300_000)
    def status(self, pattern):
        "Wait until the line that is read out says this."
        self.page.locator(".status", has_text=re.compile(pattern)).wait_for()
    def ask(self, text):
        "Type and press Enter."
        self.page.get_by_label("Describe a person").fill(text)
        self.page.keyboard.press("Enter")
    def upload(self, name, data):
        "Choose a file."
        with self.page.expect_file_chooser() as chooser: self.page.get_by_role("button", name="Choose a picture").click()
        chooser.value.set_files(dict(name=name, mimeType="image/jpeg", buffer=data))
    def shoot(self, what): self.page.screenshot(path=self.screens / f"{what}-{self.name}.png", full_page=True)
    def close(self):
        assert self.page.evaluate("window.hacked") is None
        assert self.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, "wider than the window"
        self.window.close()
        assert not self.wrong, self.wrong


@pytest.fixture
def visit(browser, page, tmp_path, request):
    "A visit at a size."
    screens = Path(SCREENS) if SCREENS else tmp_path
    screens.mkdir(exist_ok=True)
    v = Visit(browser, page, request.param, screens)
    yield v
    v.close()


def explain(v):
    "Ask, click a result, look at a prototype and at a word."
    p = v.page
    v.ask("A person in a black coat with a red bag")
    v.status(r"12 images.* in [\d,]+ ms")
    p.locator(".hit img").nth(11).wait_for()
    assert p.locator(".hit img").count() == 12 and all(a.startswith("Result ") for a in p.locator(".hit img").evaluate_all("all => all.map(i => i.alt)"))
    p.get_by_role("button", name="Why is result 2 here?").focus()
    p.keyboard.press("Enter")
    p.get_by_role("heading", name="Why result 2?").wait_for()
    v.shoot("why")
    p.get_by_label("Look at").select_option(index=p.get_by_label("Look at").locator("option").count() - 1) # the last prototype
    p.get_by_text("This prototype gathers").wait_for()
    assert p.locator(".protos figure").count() == 9
    p.get_by_label("Look at").select_option(index=5)
    p.locator(".pair img[alt*='word: black']").wait_for()


TREE = """
- main:
  - heading "Who is it?" [level=1]
  - paragraph
  - text: Describe a person
  - textbox "Describe a person"
  - button "Search"
  - button "Surprise me"
  - button
  - button
  - button
  - button "Filters"
  - button "Ask with a picture"
  - button "Compare models"
  - status: Describe somebody, or let yourself be surprised.
""" # what a screen reader has to read, of the empty page
ORDER = ["Describe a person", "Search", "Surprise me", "Filters", "Ask with a picture", "Compare models", "Why is result 1 here?", "Why is result 2 here?", "Why is result 12 here?", "Keep as PNG", "Look at", "Who looks like this?", "Close"]


def name_of_focus(p):
    "What the keyboard is on, by its label or its text."
    return p.evaluate("(e => (e.labels && e.labels[0] || e).innerText)(document.activeElement)").strip()


def for_everybody(v):
    "The page without eyes and without a mouse: roles, names, the order of Tab, what is read out by itself."
    p = v.page
    p.locator(".cx .live > [aria-live=polite]").wait_for()
    p.get_by_label("Describe a person").focus()
    reached = [name_of_focus(p)]
    while reached[-1] != "Close" and len(reached) < 60:
        p.keyboard.press("Tab")
        reached.append(name_of_focus(p))
    assert [name for name in reached if name in ORDER] == ORDER, reached
    assert all(reached), reached # nothing without a name
    for role in ("button", "combobox", "textbox", "img"):
        unnamed = p.locator("main").get_by_role(role, name=re.compile("^$"), exact=True)
        assert unnamed.count() == 0, (role, unnamed.evaluate_all("all => all.map(e => e.outerHTML)"))
    filters = p.get_by_role("button", name="Filters")
    assert filters.get_attribute("aria-expanded") == "false"
    filters.press("Space")
    p.get_by_role("button", name="Filters", expanded=True).wait_for()
    p.get_by_label("Results", exact=True).focus()
    filters.press("Space")
    p.get_by_role("button", name="Filters", expanded=False).wait_for()
    assert p.get_by_role("button", name="black", exact=True).get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("visit", [(1280, 900)], indirect=True)
def test_a_visit(visit, gallery):
    v, p = visit, visit.page
    v.shoot("start")
    from playwright.sync_api import expect
    expect(p.locator("#rendered_cells")).to_match_aria_snapshot(TREE)
    explain(v)
    for_everybody(v)
    p.get_by_role("button", name="black", exact=True).click() # what if
    p.locator(".edited", has_text="A person in a coat with a red bag").wait_for()
    p.get_by_label("Swap the word").select_option(label="red")
    p.get_by_label("for", exact=True).fill("blue")
    p.get_by_role("button", name="Swap", exact=True).click()
    p.locator(".edited", has_text="A person in a coat with a blue bag").wait_for()
    assert p.locator(".moves figcaption").first.inner_text()[0] == "1"
    v.shoot("whatif")
    p.get_by_role("button", name="Compare models").click()
    p.get_by_label("Second model").select_option(index=1)
    v.status("without its prototypes: 12 images")
    assert p.locator(".grid:visible").count() == 2
    p.get_by_label("Second model").select_option(index=0)
    p.get_by_role("button", name="Filters").click()
    camera = p.get_by_label("Camera", exact=True)
    label = camera.locator("option").nth(2).inner_text() # as in 'cam_b (9)'
    name, n = re.fullmatch(r"(\S+) \((\d+)\)", label.replace("\xa0", " ")).groups()
    camera.select_option(index=2)
    v.status(rf"^{min(12, int(n))} images, in [\d,]+ ms")
    assert {s.split(" · ")[-1] for s in p.locator(".hit:visible small").all_inner_texts()} == {name}
    camera.select_option(index=0)
    v.status(r"^12 images, in")
    p.get_by_role("button", name="Ask with a picture").click()
    picture = next((gallery / "CUHK-PEDES/imgs").glob("cam_a/0*.jpg")).read_bytes()
    v.upload("me.jpg", picture)
    p.get_by_text("Asked with this picture and the words").wait_for()
    v.upload("program.jpg", b"MZ\x90 no picture")
    v.status("upload: the file is no JPEG, PNG or WebP picture")
    Image.new("1", (20_000, 4_000)).save(bomb := io.BytesIO(), "PNG")
    v.upload("bomb.jpg", bomb.getvalue())
    v.status("the picture claims 20,000 x 4,000 pixels")
    large = gallery.parent / "large.jpg"
    with open(large, "wb") as f: f.truncate(70_000_000) # more than a message may hold
    with p.expect_file_chooser() as chooser: p.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(large)
    v.status("upload: the file has 70 MB; send a picture of at most 20 MB.")
    p.get_by_role("button", name="Why is result 1 here?").click()
    p.locator(".note", has_text="counts the picture and the words together").wait_for()
    p.get_by_role("button", name="Ask without the picture").click()
    v.status(r"^12 images, in")
    for kind in ("PNG", "HTML", "JSON"):
        p.get_by_role("button", name=f"Keep as {kind}").click()
        with p.expect_download() as kept: p.get_by_role("link", name=f"Save ranking.{kind.lower()}").click()
        assert Path(kept.value.path()).stat().st_size > 500
    p.get_by_role("button", name="Surprise me").click()
    p.locator(".sign").first.wait_for() # a caption of the data set: the truth is known
    v.shoot("truth")
    kernel = p.evaluate("JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId")
    with ThreadPoolExecutor() as pool: pool.submit(asyncio.run, messages(p.url, kernel, p.context.cookies())).result() # Playwright's own loop runs in this thread


@pytest.mark.parametrize("visit", [(390, 844)], indirect=True)
def test_a_visit_by_phone_with_bad_intentions(visit):
    v, p = visit, visit.page
    explain(v)
    for text in HOSTILE:
        v.ask(text)
        v.status(r"images.* in [\d,]+ ms")
        p.wait_for_function("t => document.querySelector('.ask input').value.length <= t", arg=len(text))
        p.get_by_role("button", name="Why is result 1 here?").click()
        p.get_by_role("heading", name="Why result 1?").wait_for()
        p.get_by_role("button", name="Close").click()
    v.ask("red " * 250_000)
    v.status("query: 1,000,000 characters were given")
    v.ask("?!")
    v.status("holds no word")
    v.ask(f"a person {EVIL}")
    v.status(r"images.* in [\d,]+ ms")
    p.get_by_role("button", name="Filters").click()
    assert EVIL in " ".join(p.get_by_label("Camera", exact=True).locator("option").all_inner_texts()).replace("\xa0", " ")
    p.get_by_label("Condition, as in").fill("camera is this")
    p.keyboard.press("Enter")
    v.status("is no condition")
    v.shoot("phone")


async def messages(url, kernel, cookies):
    "The kernel's channel takes no code, and no visitor from another site."
    from tornado.httpclient import HTTPClientError, HTTPRequest
    from tornado.websocket import websocket_connect
    address = f"{url.replace('http', 'ws', 1)}api/kernels/{kernel}/channels"
    headers = {"Cookie": "; ".join(f"{c['name']}={c['value']}" for c in cookies)}
    with pytest.raises(HTTPClientError): await websocket_connect(HTTPRequest(address, headers=headers | {"Origin": "http://evil.example"}))
    ws = await websocket_connect(HTTPRequest(address, headers=headers | {"Origin": url.rstrip("/")}))
    for kind, content in (("execute_request", dict(code="1+1", silent=False, store_history=False, user_expressions={}, allow_stdin=False)), ("complete_request", dict(code="op", cursor_pos=2)), ("kernel_info_request", {})):
        header = dict(msg_id=kind, msg_type=kind, session="s", username="", version="5.3", date="2026-01-01T00:00:00Z")
        await ws.write_message(json.dumps(dict(channel="shell", header=header, parent_header={}, metadata={}, content=content, buffers=[])))
    answers = set()
    while "kernel_info_reply" not in answers:
        m = await asyncio.wait_for(ws.read_message(), 120)
        if isinstance(m, str): m = json.loads(m)
        if m["parent_header"].get("session") == "s": answers.add(m["header"]["msg_type"])
    ws.close()
    assert answers <= {"kernel_info_reply", "status"}, answers


def fetch(url, path, **headers):
    "A raw request: status and body."
    c = http.client.HTTPConnection(url.split("/")[2], timeout=120)
    c.putrequest("GET", path, skip_host="Host" in headers)
    for k, v in headers.items(): c.putheader(k, v)
    c.endheaders()
    r = c.getresponse()
    return r.status, r.read()


PLACES = ["/voila/files/explore.ipynb", "/files/explore.ipynb", "/explore.ipynb", "/voila/render/explore.ipynb", "/tree", "/voila/tree", "/login", "/api", "/api/contents", "/voila/api/contents/", "/api/kernels", "/api/sessions",
    "/api/terminals", "/voila/static/../../../../../../../../etc/passwd", "/voila/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/voila/templates/lab/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
    "/voila/labextensions/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "/voila/api/themes/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "//etc/passwd", "/%2fetc%2fpasswd"]


@pytest.mark.parametrize("path", PLACES)
def test_there_is_nothing_else(page, path):
    status, body = fetch(page, path)
    assert status in (400, 403, 404) and b"root:" not in body and b"cells" not in body


def test_another_name_is_refused(page):
    for path in ("/", "/voila/static/voila.js", "/voila/templates/lab/static/voila.js"):
        status, body = fetch(page, path, Host="evil.example")
        assert (status, body) == (403, b"This page does not go by that name.")


def test_elsewhere_it_asks_for_a_token(gallery, tmp_path):
    process, url, log = serve(tmp_path, "--data", gallery, "--host", "127.0.0.2")
    try:
        token = url.split("?token=")[1]
        script = "/voila/templates/lab/static/voila.js"
        for path in ("/", "/?token=wrong", script, f"{script}?token={token}", "/api/kernels/12345678-1234-1234-1234-123456789abc/channels", "/voila/static/voila.js", "/nothing"):
            status, body = fetch(url, path)
            assert status == 403 and b"token" in body and len(body) < 1000
        c = http.client.HTTPConnection(url.split("/")[2], timeout=120)
        c.request("GET", f"/?token={token}")
        r = c.getresponse()
        cookie = r.headers["Set-Cookie"].split(";")[0]
        assert (r.status, r.headers["Location"]) == (302, "/") and "HttpOnly" in r.headers["Set-Cookie"] and token not in cookie
        assert fetch(url, script, Cookie=cookie)[0] == 200
        assert fetch(url, script, Cookie=cookie[:-3] + "abc")[0] == 403
    finally: assert stop(process) == (0, []), log.read_text()


def test_what_is_wrong_is_said_before_the_page_opens(page, gallery, tmp_path):
    port = page.split(":")[2].strip("/")
    for args, said in ((["--store", "nothing"], "nothing: there is no store here"), (["--port", port], f"port: {port} on 127.0.0.1 cannot be used"), (["--data", gallery, "--model", "no-such"], "no-such: there is no such folder or file"), (["--store", "people.db"], "people.db: Milvus Lite is for one process")):
        done = run("cmlfa_explore", *args, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
