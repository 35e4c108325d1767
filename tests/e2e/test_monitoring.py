"""Two real replicas under load, a real Prometheus that scrapes them: every panel, rule and alert has its answer."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import RedisServer
from tests.e2e.prometheus import Prometheus, panel_queries, scraping, wait_until_none_is_left
from tests.e2e.under_load import RAW, until

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

MODELS = ("tiny", "other")


def is_about(prometheus: Prometheus, expression: str, value: float) -> bool:
    """Whether it is within a hundredth of it."""
    return abs(prometheus.value(expression) - value) < 0.01


def classify(replicas: list[httpx.Client], photographs: list[bytes]) -> list[dict[str, Any]]:
    """The answers; replicas take turns, unevenly, and so do models."""
    turns = zip(cycle([replicas[0], *replicas]), cycle(MODELS), photographs, strict=False)
    answers = [
        replica.post("/classify", params={"model": model}, content=image, headers=RAW)
        for replica, model, image in turns
    ]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.json() for answer in answers]


def names(expression: str) -> set[str]:
    """Of the metrics and recorded series in an expression."""
    return set(re.findall(r"\b(?:lowfirst[_:][\w:]+|up\b|process_\w+)", expression))


@pytest.mark.usefixtures("prometheus")
def test_every_panel_rule_and_alert_has_its_answer(
    serve: Serve, two_versions: Path, redis_server: RedisServer, make_jpeg: Callable[..., bytes], tmp_path: Path
) -> None:
    settings = {"audit_probability": "1", "cache_entries": "100", "redis_url": redis_server.url}
    settings |= {"model_store": str(two_versions), "model": "tiny/1", "models": "other", "cost_per_hour": "0.9"}
    with ThreadPoolExecutor() as threads:
        started = threads.map(lambda _: serve(**settings), range(2))
        replicas = [client for _, client in started]
    photographs = [make_jpeg(seed) for seed in range(60)]
    targets = [f"{each.base_url.host}:{each.base_url.port}" for each in replicas]
    with scraping("prometheus.yml", {"static_configs": [{"targets": targets}]}, tmp_path) as prometheus:
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
