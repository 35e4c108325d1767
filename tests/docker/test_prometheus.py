"""Prometheus' configuration, judged by its own tool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.errors import DeadlinePassed
from service.metrics import IMAGE_ERRORS
from tests.conftest import need

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
    ran = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_the_sender_did_wrong_or_chose_too_small_is_no_error_of_an_image() -> None:
    senders = {error.code for error in IMAGE_ERRORS if error.status < 500} | {DeadlinePassed.code}
    for file in (PROMETHEUS / "rules.yml", PROMETHEUS.parent / "grafana" / "panels.py"):
        (left_out,) = re.findall(r'code!~"(.+?)"', file.read_text())
        assert set(left_out.split("|")) == senders


def test_every_alert_names_its_part_of_the_runbook() -> None:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for alert in (rule for group in groups for rule in group["rules"]):
        page = "{{ $externalLabels.lowfirst_url }}/manual/operate.md"  # tests/api/routes/test_manual.py asks for it
        assert alert["annotations"]["runbook_url"] == f"{page}#{alert['alert'].lower()}"
        assert alert["annotations"]["runbook"]


def test_alertmanager_is_content() -> None:
    need(shutil.which("amtool") is not None, "amtool", "apt-get install prometheus-alertmanager")
    file = PROMETHEUS.parent / "alertmanager/alertmanager.yml"
    ran = subprocess.run(["amtool", "check-config", file], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    routed = subprocess.run(
        ["amtool", "config", "routes", "test", f"--config.file={file}", "severity=critical"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert routed.stdout.strip() == "operators"
