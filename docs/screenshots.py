"""Takes the pictures of the console: ``python -m docs.screenshots``, in the repository's folder.

Chromium must be installed. Starts a server with the shipped model and sends it the pictures of ``tests/examples`` for a
minute per picture, so that the charts have something to show.
"""

from __future__ import annotations

import itertools
import random
import shutil
import time
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from docs.served import served

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE.parent / "tests/examples").glob("*.jpg"))
SHOWN = ("parachute-3.jpg", "parachute.jpg", "church.jpg", "golf-ball.jpg", "gas-pump.jpg")
SECONDS = 60
PREVIEWED = 0.85
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


def main(url: str) -> None:
    """Write each view beside this file, in 256 colours."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, view in VIEWS.items():
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
            page.screenshot(path=HERE / name)
            with Image.open(HERE / name) as picture:
                picture.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, kmeans=4).save(
                    HERE / name, optimize=True
                )
        browser.close()


if __name__ == "__main__":
    with served(audit_probability="0.2", cost_per_hour="0.04") as address:
        main(f"http://{address}")
