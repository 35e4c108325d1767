"""The Serve config and KubeRay's manifest: what Ray takes, and what ``lowfirst deploy`` would say."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml
from ray.serve.schema import ServeDeploySchema

from service.cluster.application import NAME, application, scale_of
from service.cluster.options import Options
from service.settings import Settings, load_settings

RAY = Path(__file__).parents[2] / "docker" / "ray"


def serve_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((RAY / "serve.yaml").read_text())
    return config


def test_serve_config_is_what_ray_takes_and_what_the_command_says() -> None:
    (deployed,) = ServeDeploySchema.model_validate(serve_config()).applications
    assert deployed.import_path == f"{application.__module__}:{application.__name__}"
    (said,) = serve_config()["applications"][0]["deployments"]
    assert said == {"name": NAME, **scale_of(Options(min_replicas=2, max_replicas=8), load_settings())}


def test_settings_in_the_serve_config_are_known_and_no_secrets() -> None:
    variables = serve_config()["applications"][0]["runtime_env"]["env_vars"]
    names = {name.removeprefix("LOWFIRST_").lower() for name in variables}
    assert names <= set(Settings.model_fields)
    assert not any(name.endswith("_key") for name in names)
    assert all(isinstance(value, str) for value in variables.values())


def test_manifest_holds_the_same_config_and_has_room_for_its_first_replicas() -> None:
    manifest = yaml.safe_load((RAY / "rayservice.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"]) == serve_config()
    cluster = manifest["spec"]["rayClusterConfig"]
    (asked,) = tomllib.loads((RAY.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]["ray"]
    assert cluster["rayVersion"] == asked.partition(">=")[2].partition(",")[0] + ".0"
    (workers,) = cluster["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    limits, requests = (container["resources"][name] for name in ("limits", "requests"))
    scale = serve_config()["applications"][0]["deployments"][0]
    per_node = int(limits["cpu"]) // scale["ray_actor_options"]["num_cpus"]
    assert limits == requests  # Ray counts the limit
    assert workers["minReplicas"] * per_node >= scale["autoscaling_config"]["min_replicas"]
    assert workers["maxReplicas"] * per_node == scale["autoscaling_config"]["max_replicas"]
    settings = load_settings()
    stop = settings.drain_delay_seconds + settings.drain_timeout_seconds
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > stop
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    port = serve_config()["http_options"]["port"]
    for each in (container, head):
        assert {"name": "serve", "containerPort": port} in each["ports"]
        assert each["image"] == "lowfirst:ray"
