"""The console in a real browser: fixtures, which conftest.py takes, and steps of its tests.

Every test fails on an error in the page, on a breach of its policy, and on a request to another host.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, expect, sync_playwright

from service.inference.latency import LatencyProfile, LatencyTable
from service.store import read_spec, write_spec

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]
Open = Callable[..., Page]

EXAMPLES = Path(__file__).parents[1] / "examples"
ROWS = 9  # of what is expected of a threshold
IN_FLIGHT = 4  # images that the server accepts at a time
TIMEOUT = 10
API_KEY, ADMIN_KEY = "an-api-key-of-ours", "an-admin-key-of-ours"
PHONE: ViewportSize = {"width": 360, "height": 740}
REFUSAL = "Failed to load resource"  # Chromium's word for every status from 400 on


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """One browser for this file: its event loop must be gone when asynchronous tests run."""
    options = ["--disable-gpu", *([] if os.geteuid() else ["--no-sandbox"])]  # root cannot have the sandbox
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def store(two_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as ``tiny/1``, ``tiny/2`` and ``other/1``, and ``broken/1``, which cannot be served.

    The last stage of ``tiny/2`` is said to cost twice as much.
    """
    root = tmp_path_factory.mktemp("console")
    for name in ("tiny/1", "tiny/2", "other/1", "broken/1"):
        shutil.copytree(two_versions / name, root / name)
    spec = read_spec(root / "tiny/2")
    *early, last = spec.stages
    dearer = dataclasses.replace(last, mmacs=2 * last.mmacs)
    write_spec(root / "tiny/2", dataclasses.replace(spec, stages=(*early, dearer)))
    return root


@pytest.fixture(scope="module")
def site(servers: Serve, store: Path) -> httpx.Client:
    """A client of the server behind the pages. It serves two models; a page is about the first unless told."""
    settings = {"model_store": str(store), "model": "tiny/1", "models": "other/1"}
    return servers(**settings, max_images_in_flight=str(IN_FLIGHT), max_image_bytes="200000")[1]


@pytest.fixture(scope="module")
def any_depth(servers: Serve, cascades: Path) -> httpx.Client:
    """A client of a server of models of one, two and three stages."""
    return servers(model_store=str(cascades), model="tiny", models="single,deep")[1]


@pytest.fixture(scope="module")
def priced(servers: Serve, store: Path, tmp_path_factory: pytest.TempPathFactory) -> httpx.Client:
    """A client of a server whose stages take 1 and 4 ms, its single-scale network 4 ms, and an hour 0.90."""
    profile = tmp_path_factory.mktemp("profile") / "profile.json"
    LatencyProfile(LatencyTable(({1: 0.001}, {1: 0.004}), {1: 0.004})).write(profile)
    return servers(model_store=str(store), model="tiny/1", profile=str(profile), cost_per_hour="0.9")[1]


@pytest.fixture(autouse=True)
def _config_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "site" in request.fixturenames:
        set_threshold(request.getfixturevalue("site"), 0.65)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """``open_page(client, **context)``: the console of the client's server, filled; what it may not do fails.

    It is not filled where ``is_locked``.
    """
    troubles: list[str] = []
    with ExitStack() as stack:

        def open_(client: httpx.Client, *, is_locked: bool = False, **settings: object) -> Page:
            home = str(client.base_url)
            context = stack.enter_context(browser.new_context(**settings))  # type: ignore[arg-type]
            page = context.new_page()
            page.set_default_timeout(TIMEOUT * 1e3)
            page.on("console", lambda message: troubles.extend(_complaint(message)))
            page.on("pageerror", lambda error: troubles.append(str(error)))
            page.on("request", lambda sent: None if sent.url.startswith((home, "blob:")) else troubles.append(sent.url))
            page.goto(home)
            expect(page.locator("#preview tr")).to_have_count(0 if is_locked else ROWS, timeout=TIMEOUT * 1e3)
            return page

        yield open_
    assert troubles == []


def _complaint(message: ConsoleMessage) -> list[str]:
    is_ours = message.type in ("error", "warning") and REFUSAL not in message.text
    return [message.text] if is_ours else []


@pytest.fixture
def page(open_page: Open, site: httpx.Client) -> Page:
    """The console on a desk."""
    return open_page(site)


def set_threshold(site: httpx.Client, threshold: float) -> int:
    """Set it, with no floor; the config's version since."""
    answer = site.patch("/config/threshold", json={"threshold": threshold, "floor": None})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["version"])


def upload(page: Page, *names: str) -> None:
    """Choose photographs of ``tests/examples``, and wait until each is answered."""
    before = page.locator("#strip button").count()
    page.locator("#files").set_input_files([EXAMPLES / name for name in names])
    expect(page.locator("#strip button")).to_have_count(before + len(names))
    expect(page.locator("#strip button.waiting")).to_have_count(0)


def slide_to(page: Page, threshold: float) -> None:
    """Move the slider."""
    page.locator("#slider").fill(str(threshold))


def handed(kind: str, *names: str) -> list[object]:
    """The argument of ``HAND_OVER``."""
    files = [[name, "image/jpeg", base64.b64encode((EXAMPLES / name).read_bytes()).decode()] for name in names]
    return [kind, *files]


def wide(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


def told(site: httpx.Client, name: str, **query: str) -> dict[str, list[dict[str, object]]]:
    """What each pass says of an example, as the API tells it."""
    image = (EXAMPLES / name).read_bytes()
    headers = {"Content-Type": "image/jpeg"}
    answer = site.post("/classify", params={**query, "passes": "true"}, content=image, headers=headers)
    passes: dict[str, list[dict[str, object]]] = answer.json()["passes"]
    return passes
