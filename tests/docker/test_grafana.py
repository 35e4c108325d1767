"""Grafana's dashboards are what their script builds, and ask the datasource that is provisioned."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
GRAFANA = DOCKER / "grafana"
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


def test_what_may_be_chosen_is_what_the_panels_follow() -> None:
    for name, text in DASHBOARDS.items():
        offered = {each["name"] for each in json.loads(text)["templating"]["list"]}
        followed = set(re.findall(r"=~\\\"\$(\w+)", text))
        assert followed == offered == ({"model", "replica"} if name == "early-exit.json" else {"replica"}), name


def test_a_panel_follows_the_chosen_replicas_or_says_that_it_is_of_all() -> None:
    for text in DASHBOARDS.values():
        for panel in json.loads(text)["panels"]:
            queries = [target["expr"] for target in panel.get("targets", [])]
            is_of_all = "all replicas" in panel.get("description", "").lower()
            assert {"$replica" in query for query in queries} <= {not is_of_all}, panel["title"]


@pytest.mark.usefixtures("prometheus")
def test_each_move_of_a_threshold_has_a_mark_wherever_it_falls_between_the_steps(tmp_path: Path) -> None:
    scrape = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    every = int(scrape.removesuffix("s"))
    for name, text in DASHBOARDS.items():
        (marks,) = json.loads(text)["annotations"]["list"]
        step = int(marks["step"].removesuffix("s"))
        moves = range(1, step // every + 1)  # one model a scrape, each moved in another one between two steps
        before = step // every
        asked = {
            "expr": marks["expr"].replace("$model", ".*"),
            "eval_time": f"{2 * step + 1}s",  # off the scrapes, so that none falls on the window's edge
            "exp_samples": [{"labels": f'{{model="{move}"}}', "value": 1} for move in moves],
        }
        moved = [
            {
                "series": f'lowfirst_threshold{{model="{move}"}}',
                "values": f"0.5x{before + move - 1} 0.6x{before - move + 1}",
            }
            for move in moves
        ]
        test = {"interval": scrape, "input_series": moved, "promql_expr_test": [asked]}
        (tmp_path / name).write_text(json.dumps({"tests": [test]}))
        ran = subprocess.run(["promtool", "test", "rules", tmp_path / name], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stdout + ran.stderr
