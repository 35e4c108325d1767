"""What the documents say of the code stays true."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

import service
from service.api.dependencies import Parts
from service.app import create_app
from service.networks.registry import BACKBONES
from service.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 200


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_document_lists_every_setting_with_its_default(name: str) -> None:
    text = (ROOT / "docs/settings.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| `LOWFIRST_{name.upper()}` "))
    default = Settings.model_fields[name].default
    assert {None: "unset", (): "none", "": "none"}.get(default, str(default)) in row or name == "model_store"


@pytest.mark.parametrize("name", BACKBONES)
def test_document_lists_every_base_network_with_its_time(name: str) -> None:
    assert f"\n| {name} | " in (ROOT / "docs/networks.md").read_text()


def test_extras_are_named_as_they_can_be_installed() -> None:
    """lowfirst is not on PyPI, so that `pip install lowfirst` would bring another's package, or none."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in (
        "*.md",
        "*.yml",
        "docs/*.md",
        "docker/**/*.y*ml",
        "docker/Dockerfile",
        "service/**/*.py",
        "loadtest/*.py",
    ):
        for path in ROOT.glob(name):
            text = path.read_text()
            assert not re.search(r"\blowfirst\[[a-z]|pip install '?lowfirst\b", text), path
            assert set(re.findall(r"pip install '\.\[(\w+)\]'", text)) <= set(extras), path


def test_changelog_begins_with_what_is_unreleased_and_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == service.__version__
    assert all(re.fullmatch(r" - \d{4}-\d\d-\d\d", date) for _, date in headings[1:])


def test_readme_tree_names_what_is_there() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    named = re.findall(r"^( *)([\w./]+?(?:\.py|/))", tree, re.MULTILINE)
    for indent, path in named:
        assert ((ROOT / "service" / path) if indent else (ROOT / path)).exists(), path


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("model_store/*/*/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert "://" in target or (document.parent / target).exists(), f"{document.name}: {target}"


def test_api_document_lists_every_route_and_every_metric(tiny_store: Path) -> None:
    text = (ROOT / "docs/api.md").read_text()
    app = create_app(Settings(model_store=tiny_store, model="tiny"))
    for path in app.openapi()["paths"]:
        assert path in text
    parts: Parts = app.state.parts
    for family in parts.metrics.registry.collect():
        if family.name.startswith("lowfirst_"):
            assert family.name.removeprefix("lowfirst") in text, family.name


def test_monitoring_document_lists_every_panel_rule_and_alert() -> None:
    text = (ROOT / "docs/monitoring.md").read_text()
    for dashboard in (ROOT / "docker/grafana/dashboards").glob("*.json"):
        for panel in json.loads(dashboard.read_text())["panels"]:
            assert panel["type"] == "row" or f"| {panel['title']} |" in text, panel["title"]
    rules = (ROOT / "docker/prometheus/rules.yml").read_text() + (ROOT / "docker/prometheus/alerts.yml").read_text()
    for name in re.findall(r"- (?:record|alert): (\S+)", rules):
        group, _, last = name.rpartition(":")
        assert f"`{name}`" in text or (f"`{group}:" in text and f"`:{last}`" in text), name
