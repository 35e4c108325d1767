"""A real Prometheus with the files of docker/, and what its dashboards ask it."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from loadtest.servers import free_port
from tests.e2e.under_load import TIMEOUT, until

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARDS = sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))

SCRAPE = "500ms"

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
        series = self.range(expression, self.began, time.time(), 0.5)
        return any(math.isfinite(float(value)) for one in series for _, value in one["values"])

    def range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Its series between two times (Unix time), a sample each ``step`` seconds: ``metric`` and ``values``."""
        series: list[dict[str, Any]] = self._data("query_range", query=expression, start=start, end=end, step=step)[
            "result"
        ]
        return series

    def alertmanagers(self) -> list[dict[str, Any]]:
        """Those that it tells of alerts."""
        active: list[dict[str, Any]] = self._data("alertmanagers")["activeAlertmanagers"]
        return active

    def alerts(self) -> list[dict[str, Any]]:
        """Those that are pending or firing."""
        alerts: list[dict[str, Any]] = self._data("alerts")["alerts"]
        return alerts

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._data("rules")["groups"] for rule in group["rules"]]

    def _data(self, call: str, **query: str | float) -> Any:
        answer = self.client.post(f"/api/v1/{call}", data=query) if query else self.client.get(f"/api/v1/{call}")
        assert answer.status_code == 200, f"{query}: {answer.text}"
        return answer.json()["data"]


@contextmanager
def scraping(
    file: str,
    targets: dict[str, Any],
    folder: Path,
    others: Mapping[str, str] | None = None,
    alertmanager: str | None = None,
) -> Iterator[Prometheus]:
    """The Prometheus of ``docker/prometheus/<file>``, but for intervals and where its first job finds its targets.

    Args:
        others: the other jobs that it has, each with its one target, host:port.
        alertmanager: whom it tells of alerts, host:port; None for nobody.
    """
    config = yaml.safe_load((DOCKER / "prometheus" / file).read_text())
    labels = config["global"].pop("external_labels")
    config["global"] = {**dict.fromkeys(config["global"], SCRAPE), "external_labels": labels}
    config["rule_files"] = [str(DOCKER / "prometheus" / name) for name in config["rule_files"]]
    first, *rest = config["scrape_configs"]
    kept = {name: first[name] for name in ("job_name", "relabel_configs") if name in first}
    config["scrape_configs"] = [kept | targets]
    for job in rest:
        if job["job_name"] in (others or {}):
            job["static_configs"][0]["targets"] = [(others or {})[job["job_name"]]]
            config["scrape_configs"].append(job)
    if alertmanager is None:
        config.pop("alerting", None)
    else:
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={path}",
        f"--storage.tsdb.path={folder}",
        f"--web.listen-address={address}",
    ]
    process = subprocess.Popen([*command, "--log.level=warn"])
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=TIMEOUT) as client:
            prometheus = Prometheus(client, process)
            until(prometheus.is_ready)
            yield prometheus
    finally:
        process.kill()
        process.wait()


def wait_until_none_is_left(left: Callable[[], list[str]]) -> None:
    """Look until nothing is, naming what is left when it takes too long."""
    end = time.monotonic() + TIMEOUT
    while still := left():
        assert time.monotonic() < end, still


def panel_queries() -> dict[str, str]:
    """Every query of every panel, and of every annotation, as Grafana would send it."""
    queries: dict[str, str] = {}
    for path in DASHBOARDS:
        page = json.loads(path.read_text())
        found = {
            f"{panel['title']} {target['refId']}": target["expr"]
            for panel in page["panels"]
            for target in panel.get("targets", [])
        }
        found |= {f"annotation {each['name']}": each["expr"] for each in page["annotations"]["list"]}
        queries |= {f"{path.stem}: {title}": asked(expression) for title, expression in found.items()}
    return queries


def asked(expression: str) -> str:
    """A query with what Grafana puts in the place of its variables."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression
