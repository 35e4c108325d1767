"""docker-compose.yml is accepted by docker-compose, closed to the outside, and of files that are there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.conftest import need

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("also", [(), ("--file", "docker/compose.cuda.yml")])
def test_docker_compose_accepts_it(also: tuple[str, ...]) -> None:
    need(shutil.which("docker-compose") is not None, "docker-compose", "apt-get install docker-compose")
    command = ["docker-compose", "--file", "docker-compose.yml", *also, "config", "--quiet"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (asked.returncode, asked.stderr) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(service)


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_published_is_published_to_this_machine_alone(name: str) -> None:
    ports = SERVICES[name].get("ports", [])
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert bool(ports) == (name in ("proxy", "prometheus", "alertmanager", "grafana"))


@pytest.mark.parametrize("name", SERVICES)
def test_a_mounted_file_is_there_and_cannot_be_written(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, _, options = volume.split(":") if volume.count(":") == 2 else (*volume.split(":"), "")
        if source in COMPOSE["volumes"]:
            continue
        assert (ROOT / source).exists(), source
        assert options == "ro"


def test_two_replicas_share_a_redis_that_nobody_else_reaches_but_its_exporter() -> None:
    assert SERVICES["lowfirst"]["deploy"]["replicas"] == 2
    assert SERVICES["redis"]["networks"] == ["state"]
    assert COMPOSE["networks"]["state"]["internal"]
    assert [name for name, service in SERVICES.items() if "state" in service.get("networks", [])] == [
        "lowfirst",
        "redis",
        "redis-exporter",
    ]


def test_a_replica_has_the_time_to_finish_what_it_accepted() -> None:
    fields = Settings.model_fields
    drain = fields["drain_delay_seconds"].default + fields["drain_timeout_seconds"].default
    assert int(SERVICES["lowfirst"]["stop_grace_period"].removesuffix("s")) > drain


def test_replicas_are_given_settings_that_exist() -> None:
    names = {f"LOWFIRST_{name.upper()}" for name in Settings.model_fields}
    assert set(SERVICES["lowfirst"]["environment"]) <= names


def test_the_proxy_takes_what_the_replicas_take() -> None:
    found = re.search(r"client_max_body_size (\d+)m;", (ROOT / "docker/nginx/nginx.conf").read_text())
    assert found
    assert int(found[1]) * 1024 * 1024 == Settings.model_fields["max_batch_bytes"].default


def test_every_image_has_a_version() -> None:
    assert all(re.search(r":\w*\d+\.\d+|^lowfirst:cpu$", service["image"]) for service in SERVICES.values())


def test_every_variable_with_a_default_is_explained() -> None:
    explained = (ROOT / ".env.example").read_text()
    for name in re.findall(r"\$\{(\w+)", TEXT):
        assert f"#{name}=" in explained, name


def test_prometheus_scrapes_and_tells_services_that_are_there() -> None:
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    named = [job["static_configs"][0]["targets"][0] for job in config["scrape_configs"] if "static_configs" in job]
    named += config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert [target.partition(":")[0] for target in named] == ["redis-exporter", "proxy-exporter", "alertmanager"]
    assert {target.partition(":")[0] for target in named} <= set(SERVICES)
    status = SERVICES["proxy-exporter"]["command"][0].partition("http://proxy:")[2].partition("/")[0]
    assert f"listen {status};" in (ROOT / "docker/nginx/nginx.conf").read_text()
    assert status not in str(SERVICES["proxy"]["ports"])


@pytest.mark.parametrize("name", ["prometheus.yml", "ray.yml"])
def test_links_in_alerts_begin_where_the_proxy_is_reached(name: str) -> None:
    config = yaml.safe_load((ROOT / "docker/prometheus" / name).read_text())
    assert config["global"]["external_labels"] == {"lowfirst_url": "${PUBLIC_URL}"}
    (port,) = SERVICES["proxy"]["ports"]
    published = "localhost:" + port.removeprefix("127.0.0.1:").removesuffix(":8080")
    assert SERVICES["prometheus"]["environment"]["PUBLIC_URL"] == "${PUBLIC_URL:-http://" + published + "}"
