"""Grafana's dashboards are what their script builds, and ask the datasource that is provisioned."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

GRAFANA = Path(__file__).parents[2] / "docker" / "grafana"
DASHBOARDS = {path.name: path.read_text() for path in (GRAFANA / "dashboards").glob("*.json")}


def test_the_script_builds_the_dashboards_that_are_checked_in(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GRAFANA / "build.py", tmp_path], check=True, timeout=60)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == DASHBOARDS


def test_every_dashboard_asks_the_provisioned_datasource() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    uid = provisioned["datasources"][0]["uid"]
    for name, text in DASHBOARDS.items():
        asked = re.findall(r'"datasource": \{\s*"type": "prometheus",\s*"uid": "([^"]*)"', text)
        assert set(asked) == {uid}, name
        assert len(asked) == text.count('"datasource"')


def test_panels_fill_their_rows_and_have_numbers_of_their_own() -> None:
    for name, text in DASHBOARDS.items():
        panels = json.loads(text)["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        widths: dict[int, int] = {}
        for panel in panels:
            widths[panel["gridPos"]["y"]] = widths.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
        assert set(widths.values()) == {24}, name
