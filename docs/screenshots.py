"""Takes the pictures of the console: ``python -m docs.screenshots [NAME…]``, in the repository's folder.

Chromium must be installed. Starts a server with the shipped model and sends it the pictures of ``tests/examples`` for a
minute per picture, so that the charts have something to show. For the picture of a trial, another model of the store
with the same classes runs behind the answers.
"""

from __future__ import annotations

import io
import itertools
import random
import shutil
import sys
import time
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from docs.served import served

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE.parent / "tests/examples").glob("*.jpg"))
SHOWN = ("parachute-3.jpg", "parachute.jpg", "church.jpg", "golf-ball.jpg", "gas-pump.jpg")
SECONDS = 60
PREVIEWED = 0.85
TRIAL = "console-trial.png"
VIEWS = {
    "console-light.png": {"viewport": {"width": 1280, "height": 1200}, "color_scheme": "light"},
    "console-phone-dark.png": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}


def load(url: str, page: Page) -> None:
    """Send the examples while the page looks on, some more often than others."""
    draw = random.Random(0)
    bodies = [example.read_bytes() for example in EXAMPLES]
    weights = [1 + 3 * draw.random() for _ in bodies]
    end = time.monotonic() + SECONDS
    with httpx.Client(base_url=url) as client:
        for body in itertools.chain.from_iterable(iter(lambda: draw.choices(bodies, weights, k=8), None)):
            client.post("/classify", content=body, headers={"Content-Type": "image/jpeg"}).raise_for_status()
            page.wait_for_timeout(draw.uniform(5, 60))
            if time.monotonic() > end:
                return


def begin_shadow(url: str) -> None:
    """Try the first model of the store that can be."""
    models = httpx.get(f"{url}/models").json()["models"]
    (served, *_) = (each for each in models if each["serving"])
    other = next(each for each in models if each["classes"] == served["classes"] and not each["serving"])
    body = {"model": f"{other['name']}/{other['version']}", "shadow": True, "max_disagreement": 0.5}
    httpx.patch(f"{url}/config/model", json=body, timeout=120).raise_for_status()


def write(picture: bytes, name: str) -> None:
    """In 256 colours."""
    with Image.open(io.BytesIO(picture)) as image:
        colours = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, kmeans=4)
        colours.save(HERE / name, optimize=True)


def take_trial(url: str, browser: Browser) -> None:
    """The part of the page that compares two models."""
    begin_shadow(url)
    page = browser.new_page(viewport={"width": 1280, "height": 1080}, color_scheme="light")
    page.goto(url)
    load(url, page)
    page.locator("#compared tr").first.wait_for()
    write(page.locator("#trial").screenshot(), TRIAL)
    httpx.patch(f"{url}/config/model", json={"cancel": True}).raise_for_status()


def main(url: str, *names: str) -> None:
    """Write each view beside this file, or those that are named."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, view in VIEWS.items():
            if names and name not in names:
                continue
            page = browser.new_page(**view)  # type: ignore[arg-type]
            page.goto(url)
            load(url, page)
            for count, shown in enumerate(SHOWN, 1):
                page.locator("#files").set_input_files(HERE.parent / "tests/examples" / shown)
                page.locator(".spent").wait_for()
                page.locator("#strip .answered").nth(count - 1).wait_for(state="attached")
            page.locator("#slider").fill(str(PREVIEWED))
            page.locator("#curve circle.then").wait_for()
            page.wait_for_timeout(1500)  # one more second of the charts
            page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            write(page.screenshot(), name)
        if not names or TRIAL in names:
            take_trial(url, browser)
        browser.close()


if __name__ == "__main__":
    with served(audit_probability="0.2", cost_per_hour="0.04") as address:
        main(f"http://{address}", *sys.argv[1:])
