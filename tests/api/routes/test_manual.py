"""The documents as pages: what alerts link to is there, and what pages link to too."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
import yaml

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
ALERTS = yaml.safe_load((ROOT / "docker/prometheus/alerts.yml").read_text())["groups"]
BASE = "{{ $externalLabels.lowfirst_url }}"


async def test_every_alert_links_to_its_part_of_a_page(client: httpx.AsyncClient) -> None:
    for alert in (rule for group in ALERTS for rule in group["rules"]):
        path, _, anchor = alert["annotations"]["runbook_url"].removeprefix(BASE).partition("#")
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert f'id="{anchor}"' in answer.text, anchor


async def test_links_and_pictures_of_the_runbook_lead_somewhere(client: httpx.AsyncClient) -> None:
    page = await client.get("/manual/operate.md")
    assert "<title>Operations</title>" in page.text
    named = set(re.findall(r'(?:href|src)="([^"]+)"', page.text))
    assert {"#canary", "monitoring.md#alerts", "console-trial.png", "../console/manual.css"} <= named
    for path, _, anchor in (each.partition("#") for each in named):
        answer = await client.get(f"/manual/{path or 'operate.md'}")
        assert answer.status_code == 200, path
        assert not anchor or f'id="{anchor}"' in answer.text, f"{path}#{anchor}"


@pytest.mark.parametrize("name", ["nothing.md", "site.py", "..%2FREADME.md", "%2e%2e", "operate.md%00", "results"])
async def test_nothing_else_of_the_folder_is_given(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/manual/{name}")).status_code == 404
