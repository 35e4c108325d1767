"""What the console says of the server: overload, time saved, promises, drift, goals. axe finds nothing in any state."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests import npm
from tests.conftest import need
from tests.e2e.console import API_KEY, EXAMPLES, PHONE, Open, Serve, set_threshold, slide_to, upload

PROMISE = {"images": 4000, "disagreements": 12, "disagreement": 0.003, "disagreement_at_most": 0.005}
LOCKED = {"error": {"code": "unauthorized", "message": "a key is needed: send it"}}


def change(page: Page, path: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Answers of the server, changed on their way to the page."""

    def answer(route: Route) -> None:
        body = route.fetch().json()
        edit(body)
        route.fulfill(json=body)

    page.route(re.compile(path), answer)


def overload(page: Page) -> None:
    """As if the server were overloaded: the threshold in force is 0.4."""
    change(page, r"/stats", lambda stats: stats.update(effective_threshold=0.4))


def test_brown_out_is_told_while_it_lasts(open_page: Open, site: httpx.Client) -> None:
    site.patch("/config/threshold", json={"threshold": 0.65, "floor": 0.3})
    page = open_page(site)
    banner = page.locator("#brownout")
    expect(banner).to_be_hidden()
    expect(page.locator("#in-force")).to_contain_text("asked 0.65 · in force 0.65")
    overload(page)
    expect(banner).to_have_text(re.compile("the threshold asked is 0.65, in force is 0.4, the floor is 0.3"))
    expect(banner).to_have_role("status")
    expect(page.locator("#in-force")).to_contain_text("asked 0.65 · in force 0.4 ")
    page.unroute(re.compile(r"/stats"))
    expect(banner).to_be_hidden()
    expect(page.locator("#in-force")).to_contain_text("asked 0.65 · in force 0.65")


def test_time_saved_is_the_servers_own_measure(page: Page) -> None:
    time = {"mean_ms": 0.9, "single_scale_ms": 1.2, "saved": 0.25}
    change(page, r"/stats", lambda stats: stats["time"].update(time))
    upload(page, "church.jpg")
    expect(page.locator("#time-saved")).to_have_text(
        "Time saved, all images25% · 0.90\u00a0ms per image, single-scale 1.2\u00a0ms"
    )
    expect(page.locator(".spent")).not_to_contain_text("about")


@pytest.mark.parametrize(
    ("audit", "state", "words"),
    [
        ({"overall_at_most": 0.004, "allowed": 0.01, "promise_kept": True}, "kept", "The promise is kept: 12 of 4,000"),
        ({"overall_at_most": 0.03, "allowed": 0.01, "promise_kept": False}, "broken", "The promise is broken"),
        ({"overall_at_most": 0.03, "allowed": 0.02, "promise_kept": None}, "unknown", "Too few audits for a verdict"),
        ({"overall_at_most": 0.03, "allowed": None, "promise_kept": None}, "unknown", "Nothing is promised"),
    ],
)
def test_verdict_of_the_audits_is_shown(page: Page, audit: dict[str, object], state: str, words: str) -> None:
    change(page, r"/stats", lambda stats: stats.update(audit=PROMISE | audit))
    expect(page.locator("#audit")).to_contain_text(words)
    expect(page.locator("#audit")).to_contain_text(re.compile(r"at most [\d.]+% of all answers"))
    expect(page.locator("#audit")).to_have_attribute("data-state", state)


@pytest.mark.parametrize(("rate", "state"), [(0.5, "kept"), (0.7, "broken")])
def test_exits_unlike_the_predicted_are_shown_as_drift(
    open_page: Open, site: httpx.Client, rate: float, state: str
) -> None:
    def edit(preview: dict[str, Any]) -> None:
        preview["recent"] = {"images": 1000, "exit_rate": rate, "mean_mmacs": 1.0}
        preview["predicted"]["exit_rate"] = 0.45

    page = open_page(site)
    change(page, "preview", edit)
    page.reload()
    expect(page.locator("#drift")).to_contain_text(f"{100 * rate:.1f}% of the latest 1,000 images exit early")
    expect(page.locator("#drift")).to_contain_text("predicts 45.0%")
    expect(page.locator("#drift")).to_have_attribute("data-state", state)


def test_feedback_is_told_where_there_is_any(open_page: Open, site: httpx.Client) -> None:
    page = open_page(site)
    expect(page.locator("#audit")).not_to_be_empty()
    expect(page.locator("#feedback")).to_be_hidden()
    of = {"images": 30, "right": 27, "accuracy": 0.9, "accuracy_interval": [0.735, 0.979]}
    both = {"low": {**of, "images": 20}, "high": {**of, "images": 10}}
    change(page, r"/stats", lambda stats: stats.update(feedback={**of, "by_exit": both}))
    share = "73.5% to 97.9%"
    words = f"90.0% of 30 labelled answers are right ({share}, 95% confidence); low 90.0% of 20 ({share}), high"
    expect(page.locator("#feedback")).to_contain_text(words)


@pytest.mark.parametrize(
    ("goal", "typed", "asked"),
    [
        ("max_mean_ms", "3.5", ("max_mean_ms", 3.5)),
        ("max_mean_mmacs", "1.2", ("max_mean_mmacs", 1.2)),
        ("min_agreement", "60", ("min_agreement", 0.6)),
        ("max_accuracy_drop", "50", ("max_accuracy_drop", 0.5)),
        ("threshold", "0.55", ("threshold", 0.55)),
    ],
)
def test_every_goal_can_be_set(
    open_page: Open, priced: httpx.Client, goal: str, typed: str, asked: tuple[str, float]
) -> None:
    page = open_page(priced)
    page.get_by_text("Set a goal or a floor").click()
    page.get_by_label("Goal", exact=True).select_option(goal)
    page.get_by_label("Value of the goal").fill(typed)
    page.get_by_role("button", name="Set the goal").click()
    expect(page.locator("#outcome")).to_contain_text("Applied: the threshold is ")
    now = priced.get("/config/threshold").json()
    assert (now["goal"], now["value"]) == asked
    if goal != "threshold":
        expect(page.locator("#in-force")).to_contain_text(re.compile(rf", for .+ (least|most) {typed}"))


def test_floor_can_be_set_and_cleared(page: Page, site: httpx.Client) -> None:
    page.get_by_text("Set a goal or a floor").click()
    for typed, floor in (("0.2", 0.2), ("", None)):
        page.get_by_label("Floor", exact=True).fill(typed)
        page.get_by_role("button", name="Set the floor").click()
        expect(page.locator("#floor")).to_contain_text("Floor 0.2" if typed else "No floor")
        assert site.get("/config/threshold").json()["floor"] == floor


def test_goal_that_cannot_be_kept_is_refused_in_words(page: Page) -> None:
    page.get_by_text("Set a goal or a floor").click()
    page.get_by_label("Goal", exact=True).select_option("max_mean_mmacs")
    page.get_by_label("Value of the goal").fill("0.0001")
    page.get_by_role("button", name="Set the goal").click()
    expect(page.locator("#outcome")).to_contain_text("Not applied.")


def test_single_scale_network_is_a_point_of_the_curve(page: Page) -> None:
    expect(page.locator("#curve circle.single")).to_have_count(1)
    expect(page.locator("#curve .point-name.single")).to_have_text("single-scale")
    words = re.compile("single-scale: the last stage's answers at ")
    expect(page.locator("#curve svg")).to_have_attribute("aria-label", words)


def test_crop_that_the_network_sees_is_framed(page: Page, site: httpx.Client) -> None:
    upload(page, "golf-ball.jpg")
    model = site.get("/models").json()["models"][0]
    crop = page.locator(".crop")
    expect(crop).to_be_visible()
    box, photograph = crop.bounding_box(), page.locator(".picture img").bounding_box()
    assert box is not None
    assert photograph is not None
    part = model["resolution"] / model["resize"]
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert box["width"] == pytest.approx(part * min(photograph["width"], photograph["height"]), abs=1.5)
    centres = [(each["x"] + each["width"] / 2, each["y"] + each["height"] / 2) for each in (box, photograph)]
    assert centres[0] == pytest.approx(centres[1], abs=1)


# accessibility


def refuse(page: Page) -> None:
    page.locator("#files").set_input_files({"name": "x.jpg", "mimeType": "image/jpeg", "buffer": b"no image"})
    expect(page.locator(".refused")).to_be_visible()


def ask_all_the_same(page: Page) -> None:
    upload(page, "church.jpg", "golf-ball.jpg")
    page.locator("#strip button").last.click()
    if page.locator("#ask-last").count():
        page.locator("#ask-last").click()
        expect(page.locator("#ask-last")).to_have_count(0)


def brown_out(page: Page) -> None:
    overload(page)
    expect(page.locator("#brownout")).to_be_visible()


def broken_promise(page: Page) -> None:
    audit = {**PROMISE, "overall_at_most": 0.03, "allowed": 0.01, "promise_kept": False}
    change(page, r"/stats", lambda stats: stats.update(audit=audit))
    expect(page.locator("#audit")).to_have_attribute("data-state", "broken")


def choose(page: Page) -> None:
    slide_to(page, 0.9)
    expect(page.locator("#curve circle.then")).to_be_visible()
    page.get_by_text("Set a goal or a floor").click()


def switch(page: Page) -> None:
    page.get_by_role("button", name="Serve this: tiny/2").click()
    expect(page.get_by_role("group", name="Serve tiny/2?")).to_be_visible()


def lock(page: Page) -> None:
    page.route(re.compile(r"/stats"), lambda route: route.fulfill(status=401, json=LOCKED))
    expect(page.locator("#state")).to_have_text("key needed")


def ask_for_a_key(page: Page) -> None:
    lock(page)
    page.get_by_role("button", name="Enter the key").click()
    expect(page.get_by_role("dialog")).to_be_visible()


def lose(page: Page) -> None:
    page.route(re.compile(r"/stats"), lambda route: route.abort())
    expect(page.locator("#state")).to_have_text("no answer")


def nothing(page: Page) -> None:
    expect(page.locator("#state")).to_have_text("ready")


STATES = (*(nothing, refuse, ask_all_the_same, brown_out, broken_promise, choose, switch, lock, ask_for_a_key, lose),)


SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core, as a script."""
    need(npm.is_there(), "npm", "apt-get install npm")
    return npm.script(npm.AXE)


def violations(page: Page, axe: str) -> list[str]:
    """What axe has to say against the page, in either colour scheme."""
    found = []
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.evaluate(axe)  # the page's policy lets no script element in
        result = page.evaluate("axe.run()")
        found += [
            f"{scheme}: {rule['id']} ({rule['help']}): {node['html'][:200]}"
            for rule in result["violations"]
            for node in rule["nodes"]
        ]
    return found


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_axe_finds_nothing_against_the_page(
    open_page: Open, site: httpx.Client, axe: str, state: Callable[[Page], None]
) -> None:
    set_threshold(site, 0.65)
    if state is brown_out:
        site.patch("/config/threshold", json={"floor": 0.3})
    page = open_page(site)
    state(page)
    assert violations(page, axe) == []


def test_axe_finds_nothing_against_the_page_on_a_phone(open_page: Open, site: httpx.Client, axe: str) -> None:
    page = open_page(site, viewport=PHONE, has_touch=True, is_mobile=True)
    ask_all_the_same(page)
    choose(page)
    assert violations(page, axe) == []


def test_axe_finds_nothing_against_a_page_that_was_never_unlocked(
    open_page: Open, serve: Serve, store: Path, axe: str
) -> None:
    _, client = serve(model_store=str(store), model="tiny/1", api_key=API_KEY)
    page = open_page(client, is_locked=True)
    expect(page.locator("#state")).to_have_text("key needed")
    assert violations(page, axe) == []
    page.locator("#files").set_input_files(EXAMPLES / "church.jpg")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert violations(page, axe) == []
