"""Grafana's dashboards are what their script builds, and ask the datasource that is provisioned."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as schema

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
        assert len(asked) == text.count('"datasource": {')


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


# panel by panel: what is left out Grafana fills in by its own defaults

ALL = {
    f"{name.removesuffix('.json')}: {panel['title']}": panel
    for name, text in sorted(DASHBOARDS.items())
    for panel in json.loads(text)["panels"]
    if panel["type"] != "row"
}


def panels(*types: str) -> pytest.MarkDecorator:
    """Runs a test on every panel of these types, or of any."""
    chosen = {name: panel for name, panel in ALL.items() if panel["type"] in types or not types}
    return pytest.mark.parametrize("panel", chosen.values(), ids=chosen)


UNITS = {"none", "percentunit", "s", "bytes", "sishort", "reqps"}
SUFFIXES = {"images/s", "batches/s", "look-ups/s", "keys/s", "failures/s"}
CALCULATIONS = {"lastNotNull", "mean", "max"}
NEUTRAL = [(None, "blue")]
SAVING = [(None, "red"), (0, "green")]
NONE_IS_GOOD = [(None, "green"), (1, "red")]
SOME_IS_GOOD = [(None, "red"), (1, "green")]
# The colours of numbers that are good or bad; all others are neither.
JUDGED = {
    "Time saved": SAVING,
    "Multiply-adds saved": SAVING,
    "p99 latency": [(None, "green"), (0.5, "red")],
    "Images failed": [(None, "green"), (0.01, "red")],
    "Images rejected": [(None, "green"), (0.01, "red")],
    "Replicas": SOME_IS_GOOD,
    "Replicas lost": NONE_IS_GOOD,
    "Config version skew": NONE_IS_GOOD,
    "Store": SOME_IS_GOOD,
}


def panels_of(name: str) -> list[dict[str, Any]]:
    """The panels of one dashboard, rows too."""
    found: list[dict[str, Any]] = json.loads(DASHBOARDS[f"{name}.json"])["panels"]
    return found


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafanas_schema_knows_every_field(name: str) -> None:
    data = json.loads(DASHBOARDS[name])
    again = json.loads(json.dumps(schema.Dashboard.from_json(data), cls=JSONEncoder))
    for annotation in data["annotations"]["list"]:
        for beyond in ("step", "titleFormat", "textFormat"):  # Prometheus' own
            del annotation[beyond]
    assert again == data


@panels()
def test_panel_has_a_title_and_a_question(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert "?" in panel["description"]


@panels("timeseries", "stat")
def test_panel_says_unit_decimals_colours_words_and_what_stands_for_nothing(panel: dict[str, Any]) -> None:
    field = panel["fieldConfig"]["defaults"]
    kind, _, suffix = field["unit"].partition(":")
    assert kind in UNITS or (kind == "suffix" and suffix in SUFFIXES)
    assert field["decimals"] in (0, 1, 2)
    assert field["noValue"]
    assert field["thresholds"]["mode"] == "absolute"
    steps = [step["value"] for step in field["thresholds"]["steps"]]
    assert steps[0] is None
    assert steps[1:] == sorted(steps[1:])
    is_state = any(word in panel["targets"][0]["expr"] for word in ("_up", "_invalid", "lowfirst_drift", "_lost"))
    assert bool(field["mappings"]) == is_state
    for mapping in field["mappings"]:
        assert set(mapping["options"]) == {"0", "1"}


@panels("timeseries")
def test_lines_are_named_in_a_legend_with_their_values(panel: dict[str, Any]) -> None:
    legend = panel["options"]["legend"]
    assert (legend["showLegend"], legend["displayMode"], legend["placement"]) == (True, "table", "bottom")
    assert {"lastNotNull"} <= set(legend["calcs"]) <= CALCULATIONS
    assert panel["options"]["tooltip"]["mode"] == "multi"
    assert all(target["legendFormat"] not in ("", "__auto") for target in panel["targets"])
    custom = panel["fieldConfig"]["defaults"]["custom"]
    has_limit = len(panel["fieldConfig"]["defaults"]["thresholds"]["steps"]) > 1
    assert custom["thresholdsStyle"]["mode"] == ("dashed" if has_limit else "off")


@panels("stat")
def test_number_is_coloured_only_where_it_is_good_or_bad(panel: dict[str, Any]) -> None:
    steps = [(step["value"], step["color"]) for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
    assert steps == JUDGED.get(panel["title"], NEUTRAL)
    assert panel["fieldConfig"]["defaults"]["color"]["mode"] == "thresholds"


@panels("heatmap")
def test_heatmap_says_its_unit_and_scale(panel: dict[str, Any]) -> None:
    axis = panel["options"]["yAxis"]
    assert axis["unit"] in UNITS
    assert axis["decimals"] == 2
    assert panel["options"]["legend"]["show"]


@panels("timeseries", "stat")
def test_rates_are_of_what_is_counted(panel: dict[str, Any]) -> None:
    queries = " ".join(target["expr"] for target in panel["targets"])
    unit = panel["fieldConfig"]["defaults"]["unit"]
    counted = {"lowfirst_images_total": "images/s", "lowfirst_batches_total": "batches/s", "lowfirst_requests": "req"}
    if "rate(" in queries and " / " not in queries and "_bucket" not in queries and "process_" not in queries:
        assert unit == "reqps" or unit.startswith("suffix:")
        for metric, called in counted.items():
            assert metric not in queries or called in unit or unit == "suffix:failures/s"


def test_time_saved_stands_first_and_rows_have_plain_names() -> None:
    titles = [panel["title"] for panel in panels_of("early-exit")]
    assert titles[:2] == ["Time and cost", "Time saved"]
    assert titles.index("Compute per image") < titles.index("Multiply-adds per image")
    rows = {panel["title"] for name in DASHBOARDS for panel in panels_of(name[:-5]) if panel["type"] == "row"}
    assert rows == {
        *("Time and cost", "Current values", "Alerts", "Savings over time", "Exits and thresholds", "Confidence"),
        *("Audits", "Requests", "Latency", "Stages", "Queues", "Batches", "Replicas", "Config", "Store", "Load"),
        *("Cache", "Processor and memory", "Redis and proxy", "Trial", "Traffic", "Feedback"),
    }


@pytest.mark.parametrize("name", ["early-exit", "serving"])
def test_alerts_of_the_provisioned_prometheus_are_listed_and_images_per_second_shown(name: str) -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    (listed,) = [panel for panel in panels_of(name) if panel["type"] == "alertlist"]
    assert listed["options"]["datasource"] == provisioned["datasources"][0]["name"]
    assert listed["options"]["stateFilter"]["firing"]
    assert listed["options"]["stateFilter"]["pending"]
    (shown,) = [panel for panel in panels_of(name) if panel["title"] == "Images per second"]
    assert shown["fieldConfig"]["defaults"]["unit"] == "suffix:images/s"


def test_threshold_is_drawn_among_the_confidences() -> None:
    (panel,) = [panel for panel in panels_of("early-exit") if panel["title"] == "Confidence against the threshold"]
    queries = " ".join(target["expr"] for target in panel["targets"])
    for metric in ("lowfirst_confidence_bucket", "lowfirst_threshold", "lowfirst_effective_threshold"):
        assert metric in queries
    filled = {
        override["matcher"]["options"]: prop["value"]
        for override in panel["fieldConfig"]["overrides"]
        for prop in override["properties"]
        if prop["id"] == "custom.fillBelowTo"
    }
    assert filled == {"p90": "p10", "p75": "p25"}
