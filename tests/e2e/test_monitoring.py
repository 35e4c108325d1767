"""Two real replicas under load, a real Prometheus that scrapes them: every panel, rule and alert has its answer."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import RedisServer

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARDS = sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))

RAW = {"Content-Type": "image/jpeg"}
TIMEOUT = 60  # a machine may be busy
SCRAPE = "500ms"
MODELS = ("tiny", "other")

VARIABLES = {"$__rate_interval": "1m", "$model": ".*", "$replica": ".*"}


class Prometheus:
    """A running Prometheus, asked over HTTP."""

    def __init__(self, client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
        self.client = client
        self.process = process
        self.began = time.time()

    def is_ready(self) -> bool:
        assert self.process.poll() is None
        try:
            return self.client.get("/-/ready").status_code == 200
        except httpx.ConnectError:
            return False

    def value(self, expression: str) -> float:
        """Of an expression with one sample, now; NaN when it has none."""
        samples = self._data("query", query=expression)["result"]
        assert len(samples) <= 1, expression
        return float(samples[0]["value"][1]) if samples else math.nan

    def has_data(self, expression: str) -> bool:
        """Whether any sample since the start is a number, asked as Grafana asks."""
        series = self._data("query_range", query=expression, start=self.began, end=time.time(), step=0.5)["result"]
        return any(math.isfinite(float(value)) for one in series for _, value in one["values"])

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._data("rules")["groups"] for rule in group["rules"]]

    def _data(self, call: str, **query: str | float) -> Any:
        answer = self.client.post(f"/api/v1/{call}", data=query) if query else self.client.get(f"/api/v1/{call}")
        assert answer.status_code == 200, f"{query}: {answer.text}"
        return answer.json()["data"]


@contextmanager
def scraping(replicas: list[httpx.Client], folder: Path) -> Iterator[Prometheus]:
    """The Prometheus of docker/, but for its targets and intervals."""
    config = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], SCRAPE)
    config["rule_files"] = [str(DOCKER / "prometheus" / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [f"{each.base_url.host}:{each.base_url.port}" for each in replicas]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={folder}",
        f"--web.listen-address={address}",
    ]
    process = subprocess.Popen([*command, "--log.level=warn"])
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=TIMEOUT) as client:
            prometheus = Prometheus(client, process)
            wait_for(prometheus.is_ready)
            yield prometheus
    finally:
        process.kill()
        process.wait()


def is_about(prometheus: Prometheus, expression: str, value: float) -> bool:
    """Whether it is within a hundredth of it."""
    return abs(prometheus.value(expression) - value) < 0.01


def wait_for(reached: Callable[[], bool]) -> None:
    """Until it is so."""
    end = time.monotonic() + TIMEOUT
    while not reached():
        assert time.monotonic() < end


def wait_until_none_is_left(left: Callable[[], list[str]]) -> None:
    """The same, naming what is left when it takes too long."""
    end = time.monotonic() + TIMEOUT
    while still := left():
        assert time.monotonic() < end, still


def classify(replicas: list[httpx.Client], photographs: list[bytes]) -> list[dict[str, Any]]:
    """The answers; replicas take turns, unevenly, and so do models."""
    turns = zip(cycle([replicas[0], *replicas]), cycle(MODELS), photographs, strict=False)
    answers = [
        replica.post("/classify", params={"model": model}, content=image, headers=RAW)
        for replica, model, image in turns
    ]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.json() for answer in answers]


def panel_queries() -> dict[str, str]:
    """Every query of every panel, and of every annotation, as Grafana would send it."""
    queries = {}
    for path in DASHBOARDS:
        page = json.loads(path.read_text())
        asked = {
            f"{panel['title']} {target['refId']}": target["expr"]
            for panel in page["panels"]
            for target in panel.get("targets", [])
        }
        asked |= {f"annotation {each['name']}": each["expr"] for each in page["annotations"]["list"]}
        for title, expression in asked.items():
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression
            queries[f"{path.stem}: {title}"] = expression
    return queries


def names(expression: str) -> set[str]:
    """Of the metrics and recorded series in an expression."""
    return set(re.findall(r"\b(?:lowfirst[_:][\w:]+|up\b|process_\w+)", expression))


@pytest.mark.usefixtures("prometheus")
def test_every_panel_rule_and_alert_has_its_answer(
    serve: Serve, two_versions: Path, redis_server: RedisServer, make_jpeg: Callable[..., bytes], tmp_path: Path
) -> None:
    settings = {"audit_probability": "1", "cache_entries": "100", "redis_url": redis_server.url}
    settings |= {"model_store": str(two_versions), "model": "tiny/1", "models": "other"}
    with ThreadPoolExecutor() as threads:
        started = threads.map(lambda _: serve(**settings), range(2))
        replicas = [client for _, client in started]
    photographs = [make_jpeg(seed) for seed in range(60)]
    with scraping(replicas, tmp_path) as prometheus:
        wait_for(lambda: prometheus.value("count(lowfirst_threshold)") == 4)  # scraped, and nothing has happened yet
        assert prometheus.value("sum(lowfirst_images_total)") == 0
        answers = classify(replicas, photographs[:30])
        wait_for(lambda: prometheus.value("sum(lowfirst_images_total)") == len(answers))  # a rate takes two scrapes
        for replica in replicas:
            assert replica.patch("/config/threshold", json={"threshold": 0.6}).status_code == 200
        answers += classify(replicas, photographs[14:])  # some from the cache
        assert any(answer["cached"] for answer in answers)
        wait_for(lambda: prometheus.value("sum(lowfirst_images_total)") == len(answers))

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
            wait_for(partial(is_about, prometheus, recorded, rate))

        rules = prometheus.rules()
        asked = panel_queries() | {rule["name"]: rule["name"] for rule in rules if rule["type"] == "recording"}
        asked |= {name: name for rule in rules for name in names(rule["query"])}
        wait_until_none_is_left(lambda: [title for title, query in asked.items() if not prometheus.has_data(query)])

        rules = prometheus.rules()
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []
