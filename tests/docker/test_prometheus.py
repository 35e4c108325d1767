"""Prometheus' configuration, judged by its own tool."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from service.metrics import IMAGE_ERRORS

PROMETHEUS = Path(__file__).parents[2] / "docker" / "prometheus"


@pytest.mark.usefixtures("prometheus")
@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "config", "ray.yml"),
        ("check", "rules", "rules.yml", "alerts.yml"),
        ("test", "rules", "tests.yml"),
    ],
    ids=" ".join,
)
def test_promtool_is_content(command: tuple[str, ...]) -> None:
    ran = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_the_sender_did_wrong_is_no_error_of_an_image() -> None:
    senders = {error.code for error in IMAGE_ERRORS if error.status < 500}
    for file in (PROMETHEUS / "rules.yml", PROMETHEUS.parent / "grafana" / "build.py"):
        (left_out,) = re.findall(r'code!~"(.+?)"', file.read_text())
        assert set(left_out.split("|")) == senders
