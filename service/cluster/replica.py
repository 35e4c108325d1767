"""One replica: the same app as ``lowfirst serve``, in a process that Ray Serve starts, checks and stops.

Only that process imports PyTorch, not the one that deploys it.
"""

# No deferred annotations here: Ray Serve reads those of a deployment's methods.

import gc
from collections.abc import Mapping

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.context import ReplicaContext
from ray.util import get_node_ip_address
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.request_context import HEADER
from service.errors import InvalidOption
from service.log import configure
from service.settings import Settings, load_settings

ANY_ADDRESS = "0.0.0.0"  # noqa: S104  Ray's proxy asks from other nodes


@serve.ingress()
class Replica:
    """The ingress of the deployment; Ray Serve runs the lifespan of its app.

    Args:
        given: settings, before those of the environment of the replica's own node.

    Raises:
        InvalidOption: this is not the only replica, and there is no Redis. Else as ``create_app``.
    """

    def __init__(self, given: Mapping[str, object]) -> None:
        context = serve.get_replica_context()
        self._settings = _settings(given, context.replica_tag)
        configure(self._settings.log_level, self._settings.log_format)
        check_shared(self._settings, _most(context))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once, in the event loop that the app will run in."""
        from service.app import create_app

        app = create_app(self._settings)
        self._parts = app.state.parts
        app.add_middleware(LeaveRequestId)
        gc.collect()
        gc.freeze()  # as `lowfirst serve` does, and for its reason
        return app

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        self._parts.check_ready()


class LeaveRequestId:
    """ASGI middleware: Ray Serve's proxy sends an ``X-Request-ID`` along and answers it itself; twice is no use."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [each for each in message["headers"] if each[0] != HEADER]
            await send(message)

        await self.app(scope, receive, send_without)


def _most(context: ReplicaContext) -> int:
    """Largest possible number of replicas; a Serve config with one to eight starts with one."""
    scale = context._deployment_config.autoscaling_config
    most: int = scale.max_replicas if scale else context.world_size
    return most


def check_shared(settings: Settings, replicas: int) -> None:
    """Raise InvalidOption if several replicas would each have their own config."""
    if replicas > 1 and not settings.redis_url:
        raise InvalidOption(
            "LOWFIRST_REDIS_URL", None, f"set for {replicas} replicas: they share their config through it"
        )


def share(resources: Mapping[str, float], threads: int) -> dict[str, object]:
    """Settings that limit a replica to its Ray resources, because it sees every core."""
    cores = int(resources.get("CPU", 0))
    if resources.get("GPU"):
        return {"device": "cuda", "decode_threads": max(1, cores)}
    return {"device": "cpu", "workers": max(1, cores // threads), "decode_threads": 0}


def _settings(given: Mapping[str, object], name: str) -> Settings:
    """Other machines reach a replica, whatever the proxy listens on; its metrics have a port."""
    set_ = load_settings(given)
    own = {
        "metrics_port": 0,
        "metrics_host": get_node_ip_address(),
        "replica": name,
        **share(ray.get_runtime_context().get_assigned_resources(), set_.threads),
    }
    missing = {key: value for key, value in own.items() if key not in set_.model_fields_set}
    return load_settings({**missing, **given, "host": ANY_ADDRESS})
