"""Two real replicas under load, a real Prometheus that scrapes them: every panel, rule and alert has its answer.

The dashboards are drawn from it too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, sync_playwright

from tests.conftest import RedisServer, need
from tests.e2e.grafana.draw import draw
from tests.e2e.programs import ALERTMANAGER, EXPORTERS, alertmanager, exporting, missing, proxy
from tests.e2e.prometheus import DASHBOARDS, Prometheus, panel_queries, scraping, wait_until_none_is_left
from tests.e2e.under_load import RAW, until

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

MODELS = ("tiny", "other")

# How many colours a canvas has.
TONES = """canvas => {
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}"""
LINES_AND_LEGEND = f"""section => ({{
  lines: section.querySelector(".chart").plot.series.length - 1,
  legend: section.querySelectorAll(".legend tr").length - 1,
  tones: ({TONES})(section.querySelector(".chart canvas")),
}})"""


def is_about(prometheus: Prometheus, expression: str, value: float) -> bool:
    """Whether it is within a hundredth of it."""
    return abs(prometheus.value(expression) - value) < 0.01


def classify(replicas: list[httpx.Client], photographs: list[bytes]) -> list[dict[str, Any]]:
    """The answers; replicas take turns, unevenly, and so do models."""
    turns = zip(cycle([replicas[0], *replicas]), cycle(MODELS), photographs, strict=False)
    answers = []
    for replica, model, image in turns:
        answer = replica.post("/classify", params={"model": model}, content=image, headers=RAW)
        assert answer.status_code == 200
        answers.append(answer.json())
        told = {"request_id": answers[-1]["request_id"], "label": 0}
        assert replica.post("/feedback", json=told).status_code == 200
    return answers


def names(expression: str) -> set[str]:
    """Of the metrics and recorded series in an expression."""
    return set(re.findall(r"\b(?:lowfirst[_:][\w:]+|up\b|process_\w+)", expression))


@pytest.mark.usefixtures("prometheus")
def test_every_panel_rule_and_alert_has_its_answer(
    serve: Serve,
    two_versions: Path,
    redis_server: RedisServer,
    make_jpeg: Callable[..., bytes],
    chromium: str,
    tmp_path: Path,
) -> None:
    lacking = missing("nginx", "npm", ALERTMANAGER, *EXPORTERS)
    need(not lacking, lacking, f"apt-get install {lacking}")
    settings = {"audit_probability": "1", "cache_entries": "100", "redis_url": redis_server.url}
    settings |= {"model_store": str(two_versions), "model": "tiny/1", "models": "other", "cost_per_hour": "0.9"}
    settings |= {"sample_log": str(tmp_path / "samples")}
    with ThreadPoolExecutor() as threads:
        started = threads.map(lambda _: serve(**settings), range(2))
        replicas = [client for _, client in started]
    photographs = [make_jpeg(seed) for seed in range(60)]
    targets = [f"{each.base_url.host}:{each.base_url.port}" for each in replicas]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lowfirst-")))
        folder.chmod(0o755)  # nginx's workers are nobody where root runs the tests
        _, status = stack.enter_context(proxy(folder, targets))
        others = stack.enter_context(exporting(redis_server.url, status))
        told = stack.enter_context(alertmanager(folder / "alerts"))
        files = {"static_configs": [{"targets": targets}]}
        address = f"{told.base_url.host}:{told.base_url.port}"
        prometheus = stack.enter_context(scraping("prometheus.yml", files, folder, others, address))
        until(lambda: prometheus.value("count(lowfirst_threshold)") == 4)  # scraped, and nothing has happened yet
        assert prometheus.value("sum(lowfirst_images_total)") == 0
        answers = classify(replicas, photographs[:30])
        until(lambda: prometheus.value("sum(lowfirst_images_total)") == len(answers))  # a rate takes two scrapes
        for replica in replicas:
            assert replica.patch("/config/threshold", json={"threshold": 0.6}).status_code == 200
        answers += classify(replicas, photographs[14:])  # some from the cache
        assert any(answer["cached"] for answer in answers)
        until(lambda: prometheus.value("sum(lowfirst_images_total)") == len(answers))

        for model in MODELS:
            own = [answer for answer in answers if answer["model"]["name"] == model]
            exits = Counter(answer["exit"] for answer in own)
            assert min(exits["low"], exits["high"]) > 5
            this = f'model="{model}/1"'
            assert prometheus.value(f'sum(lowfirst_images_total{{exit="low", {this}}})') == exits["low"]
            assert prometheus.value(f"sum(lowfirst_images_total{{{this}}})") == len(own)
            spent = prometheus.value(f'sum(lowfirst_multiply_adds_total{{stage!="audit", {this}}})')
            assert spent == pytest.approx(sum(answer["mmacs"] for answer in own) * 1e6)

            # A rate reaches beyond its samples by up to half a scrape interval, for either replica by another part.
            recorded, rate = f"lowfirst:early_exit:ratio_rate5m{{{this}}}", exits["low"] / len(own)
            until(partial(is_about, prometheus, recorded, rate))

        assert replicas[0].patch("/config/model", json={"model": "tiny/2", "shadow": True}).status_code == 200
        until(lambda: all(each.get("/config/model").json()["trial"] is not None for each in replicas))
        classify(replicas, photographs)

        rules = prometheus.rules()
        asked = panel_queries() | {rule["name"]: rule["name"] for rule in rules if rule["type"] == "recording"}
        asked |= {name: name for rule in rules for name in names(rule["query"])}
        wait_until_none_is_left(lambda: [title for title, query in asked.items() if not prometheus.has_data(query)])

        rules = prometheus.rules()
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []

        assert_alerts_reach_who_is_told(prometheus, told)
        assert_dashboards_can_be_drawn(prometheus, chromium)


def assert_alerts_reach_who_is_told(prometheus: Prometheus, told: httpx.Client) -> None:
    """Alertmanager is known to Prometheus, and keeps the lesser of two alerts about one thing to itself."""
    until(lambda: len(prometheus.alertmanagers()) == 1)
    sent = [
        {"labels": {"alertname": name, "model": "m/1", "severity": severity}}
        for name, severity in (("LowfirstPromiseBroken", "critical"), ("LowfirstPromiseInDoubt", "warning"))
    ]
    assert told.post("/api/v2/alerts", json=sent).status_code == 200

    def states() -> dict[str, str]:
        alerts = told.get("/api/v2/alerts").json()
        assert {receiver["name"] for alert in alerts for receiver in alert["receivers"]} <= {"operators"}
        return {alert["labels"]["alertname"]: alert["status"]["state"] for alert in alerts}

    until(lambda: states() == {"LowfirstPromiseBroken": "active", "LowfirstPromiseInDoubt": "suppressed"})


def assert_dashboards_can_be_drawn(prometheus: Prometheus, chromium: str) -> None:
    """Each panel draws something, each line of it has its entry in the legend, and each value its unit."""
    options = ["--disable-gpu", *([] if os.geteuid() else ["--no-sandbox"])]  # root cannot have the sandbox
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(viewport={"width": 1424, "height": 900})
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        for dashboard in DASHBOARDS:
            draw(page, dashboard, prometheus, prometheus.began, time.time())
            for panel in json.loads(dashboard.read_text())["panels"]:
                if panel["type"] != "row":
                    assert_is_drawn(page, panel)
        browser.close()
    assert troubles == []


def assert_is_drawn(page: Page, panel: dict[str, Any]) -> None:
    """What its kind has to show."""
    place = page.locator(f'section[data-title="{panel["title"]}"]')
    if panel["type"] == "timeseries":
        lines = place.evaluate(LINES_AND_LEGEND)
        assert lines["legend"] == lines["lines"] > 0, panel["title"]
        assert lines["tones"] > 1, panel["title"]
    elif panel["type"] == "heatmap":
        assert place.locator("canvas.heat").evaluate(TONES) > 1, panel["title"]
    elif panel["type"] == "stat":
        values = place.locator("div.stat .value")
        assert values.count() > 0, panel["title"]
        assert "NaN" not in "".join(values.all_inner_texts()), panel["title"]
    else:
        assert place.inner_text().endswith("No alerts matching filters")
