"""What Ray Serve is told, and what a replica makes of its share of a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.cluster.application import application, built, scale_of
from service.cluster.options import Options, read_options
from service.cluster.replica import check_shared, share
from service.cluster.router import EveryNode
from service.errors import InvalidOption
from service.settings import Settings


def deployment_of(settings: Settings, **options: Any) -> Any:
    """Ray's description of what is deployed."""
    return built(settings, scale_of(Options(**options), settings))._bound_deployment


def test_ray_gives_a_replica_more_than_it_admits_and_never_waits_less_than_it_drains() -> None:
    settings = Settings(max_images_in_flight=10, drain_delay_seconds=2, drain_timeout_seconds=20)
    config = deployment_of(settings)._deployment_config
    assert config.max_ongoing_requests == 20
    assert (config.backpressure_config.status_code, config.backpressure_config.retry_after_s) == (429, 1)
    assert config.graceful_shutdown_wait_loop_s == 2
    assert config.graceful_shutdown_timeout_s > 22


def test_a_drain_without_delay_does_not_look_without_end() -> None:
    assert deployment_of(Settings(drain_delay_seconds=0))._deployment_config.graceful_shutdown_wait_loop_s > 0


@pytest.mark.parametrize(("haproxy", "is_own"), [("0", True), ("1", False)])
def test_router_is_left_to_haproxy_where_that_stands_in_front(
    monkeypatch: pytest.MonkeyPatch, haproxy: str, is_own: bool
) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", haproxy)  # Ray refuses to deploy one beside it
    router = deployment_of(Settings())._deployment_config.request_router_config
    assert (router.get_request_router_class() is EveryNode) == is_own


def test_scale_is_a_number_or_bounds() -> None:
    fixed = deployment_of(Settings(), replicas=3, gpus_per_replica=0.5)
    assert (fixed.num_replicas, fixed._deployment_config.autoscaling_config) == (3, None)
    assert fixed.ray_actor_options == {"num_cpus": 1, "num_gpus": 0.5}
    bounds = deployment_of(Settings(max_batch_size=8), max_replicas=4)._deployment_config.autoscaling_config
    assert (bounds.min_replicas, bounds.max_replicas, bounds.target_ongoing_requests) == (1, 4, 4)


def test_version_changes_with_the_settings_alone() -> None:
    versions = [
        deployment_of(settings, **options)._version
        for settings, options in (
            (Settings(model="bees", admin_key="admin-key-0123456789"), {}),
            (Settings(admin_key="admin-key-0123456789", model="bees"), {"replicas": 2}),
            (Settings(model="bees", admin_key="admin-key-1123456789"), {}),
        )
    ]
    assert versions[0] == versions[1] != versions[2]
    assert "0123456789" not in versions[0]


def test_folders_are_named_from_the_root() -> None:
    (given,) = deployment_of(Settings(model_store=Path("models"))).init_args
    assert given == {"model_store": Path.cwd() / "models"}


@pytest.mark.parametrize(
    ("resources", "threads", "settings"),
    [
        ({"CPU": 1.0}, 1, {"device": "cpu", "workers": 1, "decode_threads": 0}),
        ({"CPU": 8.0}, 2, {"device": "cpu", "workers": 4, "decode_threads": 0}),
        ({"CPU": 0.5}, 1, {"device": "cpu", "workers": 1, "decode_threads": 0}),
        ({}, 1, {"device": "cpu", "workers": 1, "decode_threads": 0}),
        ({"CPU": 4.0, "GPU": 0.5}, 1, {"device": "cuda", "decode_threads": 4}),
        ({"GPU": 1.0}, 1, {"device": "cuda", "decode_threads": 1}),
    ],
)
def test_replica_keeps_within_its_share(resources: dict[str, float], threads: int, settings: dict[str, object]) -> None:
    assert share(resources, threads) == settings
    Settings(**settings)  # type: ignore[arg-type]


OUT_OF_BOUNDS: dict[str, tuple[dict[str, object], str]] = {
    "replicas": ({"replicas": 0}, "greater than or equal to 1"),
    "max_replicas": ({"replicas": 2, "max_replicas": 4}, "unset if replicas is 2"),
    "min_replicas": ({"max_replicas": 2, "min_replicas": 3}, "at most max_replicas, which is 2"),
    "cpus_per_replica": ({"cpus_per_replica": 1.5}, "at most 1, or a whole number"),
    "gpus_per_replica": ({"gpus_per_replica": -1}, "greater than or equal to 0"),
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_option_out_of_bounds_is_named(name: str) -> None:
    given, bound = OUT_OF_BOUNDS[name]
    with pytest.raises(InvalidOption, match=f"^{name} is {given[name]}; it must be {bound}"):
        read_options(given)


def test_least_without_most_is_refused() -> None:
    with pytest.raises(InvalidOption, match="min_replicas is 2; it must be at most max_replicas, which is unset"):
        read_options({"min_replicas": 2})


def test_several_replicas_need_a_redis() -> None:
    check_shared(Settings(), 1)
    check_shared(Settings(redis_url="redis://redis"), 2)
    for without in (None, ""):
        with pytest.raises(InvalidOption, match="LOWFIRST_REDIS_URL is unset; it must be set for 2 replicas"):
            check_shared(Settings(redis_url=without), 2)


def test_arguments_of_a_serve_config_are_refused() -> None:
    assert application({}) is not None
    with pytest.raises(InvalidOption, match=r"args is {'model': 'bees'}; it must be absent: settings are environment"):
        application({"model": "bees"})
