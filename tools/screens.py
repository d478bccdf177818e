"""The pictures of the explorer in nbs/images, made anew: python tools/screens.py"""
import io
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "nbs/images"
ASKED = "This person has on a green hoodie, shorts and red trainers. They are carrying a skateboard."


def keep(page, name: str, whole: bool = True):
    "What the window shows, or the whole page, in 256 colours."
    shot = Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    shot.save(IMAGES / f"explore-{name}.png", optimize=True)


def visit(browser, url: str, **window):
    "A page that has been asked."
    page = browser.new_context(reduced_motion="reduce", **window).new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.get_by_role("button", name="Surprise me").wait_for()
    for _ in range(2): # the second time nothing is warmed up any more
        page.get_by_label("Describe a person").fill(ASKED)
        page.keyboard.press("Enter")
        page.locator(".status", has_text=re.compile(r"in [\d,]+ ms")).wait_for()
        page.locator(".hit img").nth(11).wait_for()
        page.wait_for_timeout(1500)
    return page


def why(page):
    "Open the explanation of the first result."
    page.get_by_role("button", name="Why is result 1 here?").click()
    page.get_by_role("heading", name="Why result 1?").wait_for()
    page.locator(".protos figure").nth(8).wait_for()
    page.wait_for_timeout(1500)


def main():
    server = subprocess.Popen([Path(sys.executable).with_name("cmlfa_explore"), "--port", "0", "--cpu"], stdout=subprocess.PIPE, text=True)
    url = next(m[0] for line in server.stdout if (m := re.search(r"http://\S+", line)))
    with sync_playwright() as p:
        own = Path("/usr/bin/chromium")
        browser = p.chromium.launch(executable_path=own if own.exists() else None, args=["--no-sandbox", "--disable-gpu"])
        phone = visit(browser, url, viewport=dict(width=390, height=844), device_scale_factor=1.5)
        why(phone)
        phone.get_by_role("heading", name="Why result 1?").evaluate("e => e.parentElement.parentElement.scrollIntoView(); scrollBy(0, -16)")
        keep(phone, "phone", whole=False)
        page = visit(browser, url, viewport=dict(width=1280, height=860), device_scale_factor=.78125)
        keep(page, "search", whole=False)
        page.get_by_role("button", name="Compare models").click()
        page.get_by_label("Second model").select_option(index=1)
        page.locator(".status", has_text="without its prototypes: 12 images").wait_for()
        page.wait_for_timeout(3000)
        keep(page, "compare")
        page.get_by_label("Second model").select_option(index=0)
        page.get_by_role("button", name="Compare models").click()
        page.wait_for_timeout(3000)
        why(page)
        page.mouse.move(0, 0)
        keep(page, "why")
        page.get_by_label("Swap the word").select_option(label="red")
        page.get_by_label("for", exact=True).fill("blue")
        page.get_by_role("button", name="Swap", exact=True).click()
        page.get_by_text("The chosen image:").wait_for()
        page.wait_for_timeout(3000)
        keep(page, "whatif")
        page.get_by_role("button", name="Close").click()
        page.wait_for_timeout(1500)
        server.terminate()
        server.wait()
        page.get_by_text("The connection to the explorer is lost").wait_for()
        page.mouse.move(0, 0)
        page.evaluate("scrollTo(0, 0)")
        keep(page, "lost", whole=False)
        browser.close()


if __name__ == "__main__": main()
