"""The dashboards of docker/ as a person sees them: their own JSON over a real Prometheus, drawn in a browser."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from tests import npm
from tests.e2e.prometheus import Prometheus, asked

HERE = Path(__file__).parent
POINTS = 240  # of a panel's range


def draw(page: Page, dashboard: Path, prometheus: Prometheus, start: float, end: float) -> None:
    """Draw one dashboard of ``docker/grafana/dashboards`` over ``prometheus``, from ``start`` to ``end`` (Unix time).

    Raises:
        playwright.sync_api.Error: a unit, an override or a kind of panel that the drawing does not know.
    """
    drawn = json.loads(dashboard.read_text())
    step = max(0.5, (end - start) / POINTS)
    data = {panel["id"]: _data(panel, prometheus, start, end, step) for panel in drawn["panels"]}
    marks = [time for query in drawn["annotations"]["list"] for time in _marks(prometheus, query, start, end)]
    for each in data.values():
        each["marks"] = marks
    page.goto("about:blank")  # forgets the scripts of the dashboard before
    page.set_content("<!doctype html><meta charset=utf-8><body></body>")
    page.add_style_tag(path=HERE / "page.css")
    page.add_script_tag(content=npm.script(npm.UPLOT))
    page.add_script_tag(path=HERE / "panels.js")
    page.evaluate("([dashboard, panels]) => draw(dashboard, panels)", [drawn, data])


def _data(panel: dict[str, Any], prometheus: Prometheus, start: float, end: float, step: float) -> dict[str, Any]:
    """What the panel's queries give, each series on the same times; null where it has no value."""
    if panel["type"] == "alertlist":
        return {"alerts": prometheus.alerts()}
    count = int((end - start) / step) + 1
    times = [start + i * step for i in range(count)]
    series = []
    for target in panel.get("targets", []):
        for one in prometheus.range(asked(target["expr"]), start, end, step):
            values: list[float | None] = [None] * count
            for time, value in one["values"]:
                number = float(value)
                values[round((time - start) / step)] = number if math.isfinite(number) else None
            labels = one["metric"]
            name = _legend(target["legendFormat"], labels)
            series.append({"name": name, "le": _edge(labels), "values": values})
    return {"times": times, "series": series}


def _legend(format_: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), format_)


def _edge(labels: dict[str, str]) -> float | None:
    edge = float(labels.get("le", "inf"))
    return edge if math.isfinite(edge) else None


def _marks(prometheus: Prometheus, query: dict[str, Any], start: float, end: float) -> Iterator[float]:
    step = float(query["step"].removesuffix("s"))
    first = math.floor(start / step) * step
    for one in prometheus.range(asked(query["expr"]), first, end, step):
        yield from (time for time, _ in one["values"] if time >= start)
