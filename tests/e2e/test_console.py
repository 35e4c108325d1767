"""The console in a real browser, over a real server.

Every test fails on an error in the page, on a breach of its policy, and on a request to another host.
"""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from service.calibration_table import CalibrationRow
from service.inference.latency import LatencyProfile, LatencyTable
from service.store import read_spec, write_spec
from tests.e2e.console import (
    ADMIN_KEY,
    API_KEY,
    EXAMPLES,
    IN_FLIGHT,
    PHONE,
    ROWS,
    TIMEOUT,
    Open,
    Serve,
    handed,
    set_threshold,
    slide_to,
    told,
    upload,
    wide,
)

NONE = "\N{EN DASH}"

# Hands files to the page as a paste or a drop does; given ["paste" or "drop", [name, type, base64]...].
HAND_OVER = """([kind, ...files]) => {
  const data = new DataTransfer();
  for (const [name, type, text] of files) {
    data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name, {type}));
  }
  const settings = {bubbles: true, cancelable: true};
  document.body.dispatchEvent(kind === "paste"
    ? new ClipboardEvent("paste", {...settings, clipboardData: data})
    : new DragEvent("drop", {...settings, dataTransfer: data}));
}"""

# The contrast (WCAG 2.2) of each text colour on each ground that it stands on.
CONTRASTS = """() => {
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {
    const [r, g, b] = style.getPropertyValue(`--${name}`).trim().slice(1).match(/../g).map((hex) => {
      const value = parseInt(hex, 16) / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  return [["ink", "page"], ["ink", "card"], ["quiet", "page"], ["quiet", "card"], ["quiet", "sunk"], ["accent", "card"],
    ["second", "card"], ["third", "card"], ["fourth", "card"], ["fifth", "card"], ["error", "error-soft"],
    ["good", "card"], ["accent", "accent-soft"], ["on-solid", "accent"]].map(
    ([text, ground]) => [text, ground, Math.max(light(text) / light(ground), light(ground) / light(text))]);
}"""


def test_photograph_that_exits_shows_its_low_answer_and_what_was_saved(page: Page, site: httpx.Client) -> None:
    set_threshold(site, 0)
    upload(page, "golf-ball.jpg")
    best = str(told(site, "golf-ball.jpg", threshold="0")["low"][0]["label"])
    expect(page.locator(".pass.tone-0 .ranking li").first).to_contain_text(best)
    expect(page.locator(".verdict")).to_contain_text("above 0, so the low answer is final")
    expect(page.locator(".pass.tone-1")).to_contain_text("multiply-adds saved")
    expect(page.locator(".spent")).to_contain_text(re.compile(r"\d+% of single-scale"))
    expect(page.locator("#announcer")).to_contain_text(f"golf-ball.jpg: {best},")
    expect(page.locator(".picture img")).to_have_js_property("naturalWidth", 500)


def test_photograph_that_escalates_shows_both_answers(page: Page, site: httpx.Client) -> None:
    set_threshold(site, 1)
    upload(page, "church.jpg")
    passes = told(site, "church.jpg", threshold="1")
    for place, stage in enumerate(("low", "high")):
        first = page.locator(f".pass.tone-{place} .ranking li").first
        expect(first).to_contain_text(str(passes[stage][0]["label"]))
        expect(page.locator(f".pass.tone-{place} .cost")).to_contain_text(re.compile(r"M · [\d.]+\sms"))
    expect(page.locator(".verdict")).to_contain_text("not above 1, so it continues to the high pass")
    expect(page.get_by_role("img", name=re.compile(r"Confidence 0\.\d+, threshold 1"))).to_be_visible()


def test_high_pass_may_be_asked_of_a_photograph_that_exits(page: Page, site: httpx.Client) -> None:
    set_threshold(site, 0)
    upload(page, "parachute.jpg")
    page.get_by_role("button", name="Run it anyway").click()
    best = str(told(site, "parachute.jpg", threshold="1")["high"][0]["label"])
    expect(page.locator(".pass.tone-1 .ranking li").first).to_contain_text(best)
    expect(page.locator(".pass.tone-1")).to_contain_text(re.compile("Run anyway: it (dis)?agrees"))
    expect(page.locator("#pass-1")).to_be_focused()
    assert site.get("/config/threshold").json()["threshold"] == 0


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        ("single", ["Single pass"]),
        ("tiny", ["Low pass", "High pass"]),
        ("deep", ["Low pass", "Middle pass", "High pass"]),
    ],
)
def test_cascade_of_any_depth_is_drawn(open_page: Open, any_depth: httpx.Client, model: str, passes: list[str]) -> None:
    page = open_page(any_depth)
    page.get_by_role("combobox", name="Model").select_option(model)
    expect(page.locator(".pass h3")).to_have_text(passes)
    expect(page.locator("#curve svg")).to_be_visible()
    last = len(passes) - 1
    for threshold, ran in ((1, last), (0, 0)):
        any_depth.patch("/config/threshold", params={"model": model}, json={"threshold": threshold})
        expect(page.locator("#in-force")).to_contain_text(f"asked {threshold} ")
        upload(page, "church.jpg")
        expect(page.locator(".pass .ranking")).to_have_count(ran + 1)
        expect(page.locator(".pass.idle")).to_have_count(last - ran)
        expect(page.locator(".gauge")).to_have_count(0 if not last else max(ran, 1))
        expect(page.locator(".spent .bar").last.locator("i")).to_have_count(len(passes))
        expect(page.locator("#strip button").first).to_have_class(f"answered tone-{ran}")
    button = page.get_by_role("button", name="Run it anyway")
    expect(button).to_have_count(1 if last else 0)
    if last:
        button.click()
        expect(page.locator(".pass .ranking")).to_have_count(last + 1)
        expect(page.locator(f"#pass-{last}")).to_be_focused()
    row = page.locator("#store li", has_text=f"{model}/1")
    expect(row.locator(".bar i")).to_have_count(len(passes))


def test_page_tells_whether_the_cascade_pays_here(open_page: Open, priced: httpx.Client) -> None:
    page = open_page(priced)
    set_threshold(priced, 0)
    expect(page.locator("#pays")).to_have_text(
        "It pays here: 1.0\u00a0ms of compute per image; the single-scale network takes 4.0\u00a0ms."
    )
    slide_to(page, 1)
    expect(page.locator("#pays")).to_have_text(
        "It does not pay here: 5.0\u00a0ms of compute per image; the single-scale network takes 4.0\u00a0ms."
    )
    expect(page.locator("#curve-title")).to_have_text("Accuracy against time, by threshold")
    upload(page, "church.jpg")
    expect(page.locator("#totals")).to_contain_text(re.compile(r"-?\d+% of the single-scale time saved"))
    expect(page.locator("#totals")).to_contain_text(re.compile(r"a million images cost [\d.,]+ \(single-scale 1.00\)"))


def test_model_without_labels_or_measured_time_shows_what_is_known(
    open_page: Open, serve: Serve, store: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(store / "tiny/1", tmp_path / "tiny/1"))
    spec = read_spec(folder)
    (table,) = spec.calibration
    rows = tuple(CalibrationRow(row.threshold, row.ends, row.disagreements) for row in table.rows)
    bare = dataclasses.replace(table, rows=rows, is_labelled=False)
    write_spec(folder, dataclasses.replace(spec, calibration=(bare,)))
    LatencyProfile(LatencyTable(({1: 0.001}, {1: 0.004}))).write(tmp_path / "profile.json")
    _, client = serve(model_store=str(tmp_path), model="tiny", profile=str(tmp_path / "profile.json"))
    page = open_page(client)
    told_of = page.locator("#preview td:nth-child(2)")
    expect(told_of.nth(0)).to_have_text(NONE)  # the time saved
    expect(told_of.nth(5)).to_have_text(NONE)  # the accuracy
    expect(told_of.nth(6)).to_have_text(NONE)  # by how much it is lower at most
    expect(told_of.nth(7)).to_have_text(re.compile(r"[\d.]+%"))
    expect(page.locator("#pays")).to_have_text("")
    expect(page.locator("#curve-title")).to_have_text("Agreement against time, by threshold")
    expect(page.locator("#curve")).not_to_contain_text("single-scale")


def test_drift_and_an_exceeded_budget_are_told(page: Page, site: httpx.Client) -> None:
    notice = "Recent images differ from the calibration images (exit rate)."
    stats = site.get("/stats").json()
    stats["drift"] = {**stats["drift"], "differs": True, "notice": notice}
    stats["budget"] = {"goal": "max_mean_mmacs", "asked": 60.0, "images": 4096, "mean": 94.8, "kept": False}
    expect(page.locator("#kept")).to_be_empty()
    page.route("**/stats", lambda route: route.fulfill(json=stats))
    expect(page.locator("#drift")).to_have_text(notice)
    expect(page.locator("#kept")).to_have_text(
        re.compile(r"latest 4,096 images took 94\.8\sM each; the budget is 60\.0\sM")
    )
    low, high = site.get("/config/threshold").json()["predicted"]["accuracy_interval"]
    expect(page.locator("#preview")).to_contain_text(f"({100 * low:.1f}% {NONE} {100 * high:.1f}%)")


def test_several_photographs_have_a_place_each_and_can_be_looked_at_again(page: Page) -> None:
    upload(page, "golf-ball.jpg", "church.jpg", "parachute.jpg")
    upload(page, "gas-pump.jpg")
    expect(page.locator(".picture figcaption")).to_have_text("gas-pump.jpg")
    last = page.locator("#strip button").last
    last.click()
    expect(page.locator(".picture figcaption")).to_have_text("parachute.jpg")
    expect(last).to_have_attribute("aria-pressed", "true")
    upload(page, "church.jpg")
    expect(last).to_have_attribute("aria-pressed", "false")


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_photographs_may_be_pasted_and_dropped(page: Page, kind: str) -> None:
    page.evaluate(HAND_OVER, handed(kind, "gas-pump.jpg", "church.jpg"))
    expect(page.locator("#strip button.answered")).to_have_count(2)
    expect(page.locator(".picture figcaption")).to_have_text("gas-pump.jpg")


def test_slider_shows_what_a_threshold_would_do_and_changes_nothing(page: Page, site: httpx.Client) -> None:
    version = site.get("/config").json()["version"]
    point = page.locator("#curve circle.then")
    places = []
    for threshold in (0.9, 0.3):
        slide_to(page, threshold)
        preview = site.get("/config/threshold/preview", params={"threshold": threshold}).json()["predicted"]
        rows = page.locator("#preview tr")
        expect(rows.nth(0).locator("td").last).to_have_text(f"{100 * preview['saved']:.1f}%")
        expect(rows.nth(1).locator("td").last).to_have_text(re.compile(r"[\d.]+\sms"))
        expect(rows.nth(2).locator("td").last).to_have_text(f"{preview['mean_mmacs']:.1f} M")
        expect(rows.nth(4).locator("td").last).to_have_text(f"{100 * preview['exit_rate']:.1f}%")
        low, high = (f"{100 * end:.1f}%" for end in preview["accuracy_interval"])
        expect(rows.nth(5).locator("td").last).to_have_text(
            f"{100 * preview['accuracy']:.1f}% ({low} \N{EN DASH} {high})"
        )
        expect(rows.nth(6).locator("td").last).to_have_text(f"{100 * preview['accuracy_drop_at_most']:.1f}%")
        expect(rows.nth(7).locator("td").last).to_have_text(f"{100 * preview['agreement']:.1f}%")
        expect(rows.nth(8).locator("td").last).to_have_text(f"{100 * preview['agreement_at_least']:.1f}%")
        expect(page.locator("#curve")).to_contain_text(f"{threshold}")
        places.append(point.get_attribute("cx"))
    assert places[0] != places[1]
    assert site.get("/config").json()["version"] == version
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#slider")).to_have_js_property("value", "0.65")
    expect(point).to_have_count(0)


def test_preview_shows_no_other_thresholds_figures(open_page: Open, site: httpx.Client) -> None:
    set_threshold(site, 0.675)
    page = open_page(site)
    expect(page.locator("#in-force")).to_contain_text("asked 0.675 ")
    then = page.locator("#preview td:last-child")
    slide_to(page, 0.9)
    expect(then.first).to_contain_text("%")
    page.route("**/preview?*", lambda route: route.fulfill(status=503, json={"error": {"message": "not now"}}))
    slide_to(page, 0.3)
    expect(page.locator("#preview-title")).to_have_text("At 0.3")
    expect(then).to_have_text([NONE] * ROWS)
    expect(page.locator("#curve circle.then")).to_have_count(0)
    expect(page.locator("#outcome")).to_have_text("Not now.")
    expect(then).to_have_text([NONE] * ROWS)


def test_applied_threshold_is_in_force_and_shown(page: Page, site: httpx.Client) -> None:
    slide_to(page, 0.42)
    page.get_by_role("button", name="Apply 0.42").click()
    expect(page.locator("#outcome")).to_contain_text("Applied: the threshold is 0.42")
    expect(page.locator("#in-force")).to_contain_text("asked 0.42 ")
    expect(page.locator("#curve")).to_contain_text("0.42 asked")
    assert site.get("/config/threshold").json()["threshold"] == 0.42


def test_change_made_elsewhere_is_shown_and_the_floor_too(page: Page, site: httpx.Client) -> None:
    site.patch("/config/threshold", json={"threshold": 0.8, "floor": 0.3})
    expect(page.locator("#in-force")).to_contain_text("asked 0.8 ")
    expect(page.locator("#floor")).to_contain_text("Floor 0.3")
    expect(page.locator("#slider")).to_have_js_property("value", "0.8")


def test_conflict_is_told_and_nothing_is_applied_until_asked_again(page: Page, site: httpx.Client) -> None:
    late = [0.7]

    def be_late(route: Route) -> None:
        if route.request.method == "PATCH" and late:
            set_threshold(site, late.pop())
        route.continue_()

    page.route("**/config/threshold", be_late)
    slide_to(page, 0.9)
    page.get_by_role("button", name="Apply 0.9").click()
    expect(page.locator("#outcome")).to_contain_text("somebody changed the config meanwhile, it is 0.7 now")
    assert site.get("/config/threshold").json()["threshold"] == 0.7
    page.get_by_role("button", name="Apply 0.9").click()
    expect(page.locator("#in-force")).to_contain_text("asked 0.9 ")


def test_conflict_is_told_even_if_the_config_cannot_be_read(page: Page) -> None:
    def refuse(route: Route) -> None:
        route.fulfill(status=412 if route.request.method == "PATCH" else 503, json={"error": {"message": "not now"}})

    page.route("**/config/threshold", refuse)
    slide_to(page, 0.9)
    page.get_by_role("button", name="Apply 0.9").click()
    expect(page.locator("#outcome")).to_have_text("Not applied: somebody changed the config meanwhile. Not now.")


def test_refused_change_shows_the_servers_reason(open_page: Open, site: httpx.Client) -> None:
    site.patch("/config/threshold", json={"floor": 0.5})
    page = open_page(site)
    expect(page.locator("#floor")).to_contain_text("Floor 0.5")
    slide_to(page, 0.2)
    page.get_by_role("button", name="Apply 0.2").click()
    expect(page.locator("#outcome")).to_have_text(
        "Not applied. The threshold must be at least the current floor, 0.5; change or clear the floor too."
    )


def test_charts_move_after_load(open_page: Open, site: httpx.Client) -> None:
    set_threshold(site, 1)
    told(site, "church.jpg")
    page = open_page(site)
    charts = page.locator(".chart")
    expect(charts).to_have_count(6)
    expect(charts.locator("b")).to_have_text([NONE] * 6 + ["0", "0"])  # that image is no news
    lines = [charts.nth(i).locator("svg path.line").first for i in range(6)]
    before = [line.get_attribute("d") for line in lines]
    upload(page, "golf-ball.jpg", "church.jpg")
    expect(charts.nth(0).locator("b")).to_have_text(re.compile(r"-?[\d.]+%"))
    expect(charts.nth(1).locator("b")).to_have_text(re.compile(r"[\d.]+\sms"))
    expect(charts.nth(3).locator("b")).to_have_text("0.0%")
    model = site.get("/models").json()["models"][0]
    expect(charts.nth(2).locator("b")).to_have_text(f"{model['low_mmacs'] + model['high_mmacs']:.1f} M")
    expect(charts.nth(4).locator("b").first).to_have_text(re.compile(r"[\d.]+\sms"))
    for line, path in zip(lines, before, strict=True):
        expect(line).not_to_have_attribute("d", path or "")


def test_models_are_listed_and_served_once_confirmed(page: Page, site: httpx.Client) -> None:
    upload(page, "church.jpg")
    costs = page.locator(".spent > div").last.inner_text()
    rows = page.locator("#store li")
    expect(rows).to_have_count(4)
    expect(page.locator("#store .serving h3")).to_have_text(["other/1", "tiny/1"])
    try:
        serve_instead(page, "broken/1")
        expect(page.locator("#switched")).to_contain_text("broken/1 is not served. The model must be")
        expect(page.get_by_role("button", name="Serve this: broken/1")).to_be_focused()
        page.get_by_role("button", name="Serve this: tiny/2").click()
        expect(page.get_by_role("group", name="Serve tiny/2?")).to_contain_text("For all requests, instead of tiny/1?")
        assert site.get("/stats").json()["model"] == {"name": "tiny", "version": 1}
        page.get_by_role("button", name="Serve tiny/2", exact=True).click()
        expect(page.get_by_role("banner")).to_contain_text("tiny/2")
        expect(page.get_by_role("heading", name="tiny/2")).to_be_focused()
        assert page.locator(".spent > div").last.inner_text() == costs
        upload(page, "church.jpg")
        assert site.get("/stats").json()["model"] == {"name": "tiny", "version": 2}
    finally:
        site.patch("/config/model", json={"model": "tiny/1"})


def test_a_model_is_tried_behind_the_answers_compared_and_promoted(page: Page, site: httpx.Client) -> None:
    trial = page.locator("#trial")
    try:
        page.get_by_role("button", name="Serve this: tiny/2").click()
        page.get_by_role("button", name="Start a shadow first").locator("visible=true").click()
        expect(page.locator("#trial-kind")).to_have_text(
            "tiny/2 runs in the background on 100 % of the images of tiny/1"
        )
        expect(page.locator("#store .tried .kind")).to_have_text("shadow")
        expect(page.locator("#agreement")).to_have_text("No image was compared yet.")
        upload(page, "church.jpg", "golf-ball.jpg")
        expect(page.locator("#agreement")).to_contain_text("They agree on 100.0% of 2 images; on at least 22.4%")
        expect(trial.locator("thead th")).to_have_text(["tiny/1", "tiny/2"])
        rows = dict(row.split("\t", 1) for row in page.locator("#compared").inner_text().splitlines())
        assert rows["Errors"] == "0\t0"
        assert re.fullmatch(r"[\d.]+\sms\t[\d.]+\sms", rows["p99 without waiting"])
        site.patch("/config/model", json={"share": 0.5, "shadow": False, "max_disagreement": 0.02})
        expect(page.locator("#trial-kind")).to_have_text("tiny/2 answers 50 % of the images of tiny/1")
        expect(page.locator("#guard")).to_contain_text("more than 2 % differ or fail")
        trial.get_by_role("button", name="Promote tiny/2").click()
        expect(trial.get_by_role("group", name="Serve it for all requests, instead of tiny/1?")).to_be_visible()
        assert site.get("/config/model").json()["trial"] is not None
        trial.get_by_role("button", name="Yes").locator("visible=true").click()
        expect(page.get_by_role("banner")).to_contain_text("tiny/2")
        expect(page.locator("#ended")).to_contain_text("The latest trial, of tiny/2, was promoted")
    finally:
        if site.get("/config/model").json()["trial"] is not None:
            site.patch("/config/model", json={"cancel": True})
        site.patch("/config/model", json={"model": "tiny/1"})


def test_a_trial_that_cannot_begin_says_why(page: Page) -> None:
    page.get_by_role("button", name="Serve this: broken/1").click()
    page.get_by_role("button", name="Start a shadow first").locator("visible=true").click()
    expect(page.locator("#switched")).to_contain_text(
        "broken/1 was not started. The model must be one that can be served"
    )


def serve_instead(page: Page, model: str) -> None:
    """Both steps."""
    page.get_by_role("button", name=f"Serve this: {model}").click()
    page.get_by_role("button", name=f"Serve {model}", exact=True).click()


def test_page_may_be_turned_to_another_served_model(page: Page, site: httpx.Client) -> None:
    pick = page.get_by_role("combobox", name="Model")
    expect(pick.locator("option")).to_have_text(["tiny", "other"])
    site.patch("/config/threshold", params={"model": "other"}, json={"threshold": 0.8})
    pick.select_option("other")
    expect(page.get_by_role("banner")).to_contain_text("other/1")
    expect(page.locator("#in-force")).to_contain_text("asked 0.8 ")
    slide_to(page, 0.42)
    page.get_by_role("button", name="Apply 0.42").click()
    expect(page.locator("#in-force")).to_contain_text("asked 0.42 ")
    assert [one["threshold"] for one in site.get("/config").json()["thresholds"]] == [0.65, 0.42]
    before = site.get("/stats", params={"model": "other"}).json()["images"]
    upload(page, "church.jpg")
    assert site.get("/stats", params={"model": "other"}).json()["images"] == before + 1


def test_server_with_keys_asks_for_them_and_its_end_is_told_of(open_page: Open, serve: Serve, store: Path) -> None:
    keys = {"api_key": API_KEY, "admin_key": ADMIN_KEY}
    process, client = serve(model_store=str(store), model="tiny/1", drain_delay_seconds="60", **keys)
    page = open_page(client, is_locked=True)
    notice = page.get_by_role("alert")
    expect(notice).to_contain_text("A key is needed.")
    expect(page.locator("#state")).to_have_text("key needed")
    for key, reason in (("a-key-of-nobody", "A key is needed."), (API_KEY, "The key is wrong.")):
        expect(notice).to_contain_text(reason)
        page.get_by_role("button", name="Enter the key").click()
        expect(page.get_by_role("dialog", name="API key needed")).to_contain_text(reason)
        page.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
    expect(page.locator("#preview tr")).to_have_count(ROWS)
    expect(page.locator("#state")).to_have_text("ready")
    expect(notice).to_be_hidden()
    expect(page.locator("#files")).to_be_focused()
    expect(page.locator("#several")).to_be_hidden()
    slide_to(page, 0.5)
    page.get_by_role("button", name="Apply 0.5").click()
    dialog = page.get_by_role("dialog", name="Admin key needed")
    expect(dialog).to_contain_text("The API key does not allow changes; the admin key does.")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Apply 0.5")).to_be_focused()
    expect(page.locator("#outcome")).to_have_text(
        "Not applied. The API key does not allow changes; the admin key does."
    )
    page.keyboard.press("Enter")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.get_by_label("Key", exact=True).fill(ADMIN_KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#in-force")).to_contain_text("asked 0.5 ")
    kept = page.evaluate("[localStorage.length, document.cookie, Object.values(sessionStorage).sort()]")
    assert kept == [0, "", [ADMIN_KEY, API_KEY]]
    serve_instead(page, "tiny/2")
    expect(page.get_by_role("banner")).to_contain_text("tiny/2")
    process.send_signal(signal.SIGTERM)
    expect(notice).to_contain_text("The server does not accept work. The server is stopping.")
    process.kill()
    expect(notice).to_contain_text("The server does not answer")
    expect(page.locator("#state")).to_have_text("no answer")
    page.locator("#files").set_input_files(EXAMPLES / "church.jpg")
    expect(page.locator(".refused")).to_contain_text("The server does not answer")


def test_file_that_is_no_image_shows_the_servers_message(page: Page) -> None:
    page.locator("#files").set_input_files({"name": "x.jpg", "mimeType": "image/jpeg", "buffer": b"no image"})
    refused = page.locator(".refused")
    expect(refused).to_contain_text("No answer. The server reads JPEG, PNG, WebP, GIF and BMP")
    expect(refused.get_by_role("button")).to_have_count(0)
    expect(page.locator("#announcer")).to_contain_text("x.jpg: ")
    expect(page.locator(".picture .undrawn")).to_have_text("no preview")
    page.locator("#files").set_input_files({"name": "y.jpg", "mimeType": "image/jpeg", "buffer": bytes(234567)})
    expect(refused).to_contain_text("The image has 0.235\u00a0MB; the server takes up to 0.2\u00a0MB.")


def test_busy_server_is_told_of_and_may_be_asked_again(page: Page, site: httpx.Client) -> None:
    refused = page.locator(".refused")
    with busy(site):
        upload(page, "church.jpg")
        while not refused.count():  # it may have come between two batches
            upload(page, "church.jpg")
        expect(refused).to_contain_text(re.compile(r"The server is busy\. Try again in \d+ s\."))
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".pass.tone-0 .ranking li").first).to_be_visible()


@contextmanager
def busy(site: httpx.Client) -> Iterator[None]:
    """Keep every place of the server taken, but for moments."""
    batch = [("image", (EXAMPLES / "church.jpg").read_bytes())] * IN_FLIGHT
    done = threading.Event()

    def work() -> None:
        with httpx.Client(base_url=site.base_url, timeout=TIMEOUT) as client:
            while not done.is_set():
                assert client.post("/classify/batch", files=batch).status_code in (200, 429)

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            until(lambda: site.get("/stats").json()["queue"]["images_in_flight"] == IN_FLIGHT)
            yield
        finally:
            done.set()
        working.result()


def until(is_so: Callable[[], bool], wait: Callable[[float], None] = time.sleep) -> None:
    """Wait for it."""
    end = time.monotonic() + TIMEOUT
    while not is_so():
        assert time.monotonic() < end
        wait(0.01)


def test_key_that_is_declined_is_not_asked_for_again_until_it_is_given(page: Page) -> None:
    error = {"code": "unauthorized", "message": "a key is needed: send it"}

    def lock(route: Route) -> None:
        if route.request.headers.get("authorization"):
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": error})

    page.route(re.compile(r"classify\?"), lock)
    page.locator("#files").set_input_files([EXAMPLES / "church.jpg"] * 3 + [EXAMPLES / "golf-ball.jpg"] * 5)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("A key is needed.")
    page.keyboard.press("Escape")
    expect(page.locator("#strip button.error")).to_have_count(8)
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Try again").click()
    page.get_by_label("Key", exact=True).fill("open-sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#strip button.answered")).to_have_count(8)


def test_keyboard_alone_is_enough(page: Page, site: httpx.Client) -> None:
    keys = page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(20):
            keys.press("Tab")
            if page.locator(f"{selector}:focus").count():
                return
        pytest.fail(f"the tab key does not lead to {selector}")

    page.on("filechooser", lambda chooser: chooser.set_files(EXAMPLES / "golf-ball.jpg"))
    tab_to(".skip")
    tab_to("#files")
    keys.press("Enter")
    expect(page.locator(".pass.tone-0 .ranking li").first).to_be_visible()
    tab_to("#slider")
    assert page.locator("#slider").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    for _ in range(5):
        keys.press("ArrowRight")
    expect(page.locator("#chosen")).to_have_text("0.7")
    tab_to("#apply")
    assert page.locator("#apply").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    keys.press("Enter")
    expect(page.locator("#in-force")).to_contain_text("asked 0.7 ")
    expect(page.locator("#apply")).to_be_focused()
    assert site.get("/config/threshold").json()["threshold"] == 0.7
    try:
        tab_to("[aria-label='Serve this: tiny/2']")
        keys.press("Enter")
        expect(page.get_by_role("button", name="Serve tiny/2")).to_be_focused()
        keys.press("Tab")
        keys.press("Enter")  # Cancel
        expect(page.get_by_role("button", name="Serve this: tiny/2")).to_be_focused()
        keys.press("Enter")
        keys.press("Enter")
        expect(page.get_by_role("heading", name="tiny/2")).to_be_focused()
    finally:
        site.patch("/config/model", json={"model": "tiny/1"})


def test_focus_stays_while_photographs_are_answered(page: Page, site: httpx.Client) -> None:
    set_threshold(site, 0)
    held: list[Route] = []
    upload(page, "golf-ball.jpg", "church.jpg")
    page.route(re.compile(r"classify\?"), lambda route: held.append(route))
    page.locator("#files").set_input_files([EXAMPLES / "gas-pump.jpg", EXAMPLES / "parachute.jpg"])
    thumbnail = page.locator("#strip button").last
    thumbnail.focus()
    until(lambda: len(held) == 2, page.wait_for_timeout)  # in which the routes are told of
    for route in held:
        route.fulfill(status=429, json={"error": {"code": "busy", "message": "full"}})
    expect(page.locator("#strip button.waiting")).to_have_count(0)
    expect(thumbnail).to_be_focused()
    again = page.get_by_role("button", name="Try again")
    again.focus()
    page.unroute(re.compile(r"classify\?"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Low pass")).to_be_focused()


def test_everything_that_is_used_or_drawn_has_a_name(page: Page) -> None:
    upload(page, "golf-ball.jpg", "church.jpg")
    nameless = page.locator("main").aria_snapshot()
    assert not re.findall(r"^\s*- (?:button|slider|img|table|link|textbox)\s*:?\s*$", nameless, re.MULTILINE)
    expect(page.get_by_role("slider", name="Exit early above this confidence")).to_be_visible()
    expect(page.get_by_label(re.compile("Choose photographs"))).to_have_count(1)
    expect(page.get_by_role("button", name="Serve this: tiny/2")).to_be_visible()
    for name in ("Try a photograph", "Threshold", "Live checks", "Live", "Models"):
        expect(page.get_by_role("region", name=name, exact=True)).to_be_visible()


def test_phone_needs_no_horizontal_scrolling(open_page: Open, site: httpx.Client) -> None:
    set_threshold(site, 1)
    page = open_page(site, viewport=PHONE, has_touch=True, is_mobile=True)
    assert wide(page) <= 0
    upload(page, "golf-ball.jpg", "church.jpg", "parachute.jpg", "gas-pump.jpg", "parachute-2.jpg")
    slide_to(page, 0.9)
    expect(page.locator("#curve circle.then")).to_be_visible()
    assert wide(page) <= 0


def test_dark_and_light_follow_the_system_and_can_be_read(page: Page) -> None:
    for scheme, ground in (("light", "rgb(246, 245, 242)"), ("dark", "rgb(18, 19, 18)")):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        expect(page.locator("html")).to_have_css("background-color", ground)
        contrasts = page.evaluate(CONTRASTS)
        assert [pair for pair in contrasts if pair[2] < 4.5] == []


def test_drawings_are_seen_in_a_systems_own_colours(page: Page) -> None:
    upload(page, "golf-ball.jpg")
    page.emulate_media(forced_colors="active")
    for drawn, ground in ((".gauge i", ".gauge"), (".bar i", ".bar"), (".bar", "html"), (".gauge", "html")):
        colours = [
            page.locator(one).first.evaluate("e => getComputedStyle(e).backgroundColor") for one in (drawn, ground)
        ]
        assert colours[0] != colours[1], drawn
    with Image.open(io.BytesIO(page.locator(".range").screenshot())) as slider:
        ground_left_right = [slider.getpixel((slider.width * x // 100, y)) for x, y in ((20, 3), (20, 17), (95, 17))]
    assert len(set(ground_left_right)) == 3


def test_reduced_motion_is_respected(page: Page) -> None:
    drop = page.locator(".drop")
    page.emulate_media(reduced_motion="no-preference")
    expect(drop).to_have_css("transition-duration", "0.15s")
    page.emulate_media(reduced_motion="reduce")
    expect(drop).to_have_css("transition-duration", "0s")
