"""The Ray Serve application: what ``lowfirst deploy`` runs, and what the ``import_path`` of a Serve config names."""

# No deferred annotations here: Ray Serve reads that of the builder's parameter.

from typing import Any

from ray import serve
from ray.serve import Application

from service.cluster.options import Options
from service.cluster.replica import Replica, check_shared
from service.settings import Settings, load_settings

NAME = "lowfirst"

# Requests in work that a replica is given: beyond what it admits there is room for those it answers 429 itself. What
# comes beyond that, too, the proxy answers 429.
ROOM = 2
RETRY_AFTER_SECONDS = 1

# A replica is added when requests would wait for a batch behind the one that runs; it takes seconds to start.
UPSCALE_SECONDS = 10.0
DOWNSCALE_SECONDS = 300.0
MEAN_OVER_SECONDS = 20.0

HEALTH_CHECK_SECONDS = 2.0  # how soon a dead replica is replaced
ATTEMPTS = 3  # to start a replica that fails

LEAST_WAIT_SECONDS = 0.1  # between two looks at whether a replica that stops has requests left
CLOSE_SECONDS = 5.0  # for the rest of a replica's stop


def application(options: Options) -> Application:
    """The application, by the settings of this environment.

    Raises:
        InvalidOption: a setting out of bounds, or no Redis for more than one replica.
    """
    settings = load_settings()
    check_shared(settings, options.most)
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    deployment = serve.deployment(Replica, name=NAME, **deployment_options(options, settings))
    return deployment.bind({**options.share(settings), **given})


def deployment_options(options: Options, settings: Settings) -> dict[str, Any]:
    """What Ray Serve is told; a Serve config's ``deployments`` may say otherwise."""
    ongoing = ROOM * settings.max_images_in_flight
    scale: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas:
        scale = {
            "autoscaling_config": {
                "min_replicas": options.first,
                "max_replicas": options.most,
                "target_ongoing_requests": max(1, settings.max_batch_size / 2),
                "upscale_delay_s": UPSCALE_SECONDS,
                "downscale_delay_s": DOWNSCALE_SECONDS,
                "look_back_period_s": MEAN_OVER_SECONDS,
            }
        }
    return {
        **scale,
        "ray_actor_options": {"num_cpus": options.cpus_per_replica, "num_gpus": options.gpus_per_replica},
        "max_ongoing_requests": ongoing,
        "max_queued_requests": ongoing,
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_AFTER_SECONDS},
        "graceful_shutdown_wait_loop_s": max(LEAST_WAIT_SECONDS, settings.drain_delay_seconds),
        "graceful_shutdown_timeout_s": settings.drain_delay_seconds + settings.drain_timeout_seconds + CLOSE_SECONDS,
        "health_check_period_s": HEALTH_CHECK_SECONDS,
        "max_constructor_retry_count": ATTEMPTS,
    }
