"""The Ray Serve application, for ``lowfirst deploy`` and for the ``import_path`` of a Serve config."""

# No deferred annotations here: Ray Serve reads that of the builder's parameter.

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from service import __version__
from service.cluster.options import Options
from service.cluster.replica import Replica
from service.cluster.router import EveryNode
from service.errors import InvalidOption
from service.settings import Settings, load_settings

NAME = "lowfirst"

# Requests in work that a replica is given: beyond what it admits there is room for those it answers 429 itself. What
# comes beyond that, too, the proxy answers 429.
ROOM = 2
RETRY_AFTER_SECONDS = 1

HEALTH_CHECK_SECONDS = 2.0  # how soon a dead replica is replaced
ATTEMPTS = 3  # to start a replica that fails

LEAST_WAIT_SECONDS = 0.1  # between two looks at whether a replica that stops has requests left
CLOSE_SECONDS = 5.0  # for the rest of a replica's stop


def application(args: dict[str, Any]) -> Application:
    """The application with the settings of this environment; ``deployments`` of the Serve config sets the number of
    replicas.

    Raises:
        InvalidOption: a setting out of bounds, or any ``args``, which are not supported.
    """
    if args:
        raise InvalidOption("args", args, "absent: settings are environment variables (runtime_env, env_vars)")
    return built(load_settings(), {})


def built(settings: Settings, scale: Mapping[str, Any]) -> Application:
    """The application with ``settings``, at this ``scale``."""
    given = {name: _anywhere(getattr(settings, name)) for name in sorted(settings.model_fields_set)}
    deployment = serve.deployment(Replica, name=NAME, **_bounds(settings), **scale)
    # Ray would take a random version, and so replace every replica where nothing but their number changes.
    deployment._version = hashlib.sha256(repr((__version__, _plain(given))).encode()).hexdigest()
    return deployment.bind(given)


def scale_of(options: Options, settings: Settings) -> dict[str, Any]:
    """Number and size of the replicas, in the format of a Serve config's ``deployments``.

    A replica is added if requests would wait behind the running batch for as long as a new replica takes to start. One
    is removed after five minutes in which it was not needed.
    """
    sized = {"ray_actor_options": {"num_cpus": options.cpus_per_replica, "num_gpus": options.gpus_per_replica}}
    if not options.max_replicas:
        return {**sized, "num_replicas": options.replicas}
    scale = {
        "min_replicas": options.first,
        "max_replicas": options.most,
        "target_ongoing_requests": max(1, settings.max_batch_size // 2),
        "upscale_delay_s": 10,
        "downscale_delay_s": 300,
        "look_back_period_s": 20,
    }
    return {**sized, "autoscaling_config": scale}


def _bounds(settings: Settings) -> dict[str, Any]:
    ongoing = ROOM * settings.max_images_in_flight
    return {
        "max_ongoing_requests": ongoing,
        "max_queued_requests": ongoing,
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_AFTER_SECONDS},
        "graceful_shutdown_wait_loop_s": max(LEAST_WAIT_SECONDS, settings.drain_delay_seconds),
        "graceful_shutdown_timeout_s": settings.drain_delay_seconds + settings.drain_timeout_seconds + CLOSE_SECONDS,
        **_router(),
        "health_check_period_s": HEALTH_CHECK_SECONDS,
        "max_constructor_retry_count": ATTEMPTS,
    }


def _router() -> dict[str, Any]:
    """HAProxy, where Ray Serve is told to put it in its proxies' place, knows every node's replicas itself."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        return {}
    return {"request_router_config": RequestRouterConfig(request_router_class=EveryNode)}


def _anywhere(value: object) -> object:
    """A replica starts in another folder than who deploys it."""
    return value.absolute() if isinstance(value, Path) else value


def _plain(given: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        for name, value in given.items()
    }
