"""Deploys the application on a running Ray cluster."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import grpc
import ray
from ray import serve
from ray._private.authentication import authentication_token_setup as tokens
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import get_ray_address_from_environment
from ray.serve.exceptions import RayServeException

from service.cluster.application import built, scale_of
from service.cluster.options import MOST_REPLICAS, Options
from service.cluster.replica import check_shared
from service.errors import DeploymentFailed, InvalidOption
from service.settings import load_settings

FORMS = "auto, host:port or ray://host:port of a running Ray cluster"
CONNECT_SECONDS = 3.0
LOOK_SECONDS = 0.5
REQUEST_SECONDS = 60.0  # that a proxy waits for an answer
ROUNDING = 1e-6  # 0.6 / 0.2 is below 3
ANY_CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"
OUR_ERROR = re.compile(r"service\.errors\.\w+: (.+)")


def deploy(
    options: Options, *, address: str, name: str, route_prefix: str, host: str, port: int, seconds: float, grows: bool
) -> None:
    """Deploy, or change the deployment of that name, and wait until every replica is up.

    Args:
        address: of the cluster: ``auto``, host:port or ray://host:port.
        route_prefix: URL path of the app.
        host, port: address of Ray Serve's proxies, unless Serve runs in the cluster already.
        seconds: how long that may take.
        grows: Ray's autoscaler adds nodes, so more replicas may be requested than currently fit.

    Raises:
        InvalidOption: no cluster at ``address``, no room for the replicas, or no Redis for more than one of them.
        DeploymentFailed: the replicas do not start.
    """
    settings = load_settings()
    check_shared(settings, options.most)
    target = serve.RunTarget(target=built(settings, scale_of(options, settings)), name=name, route_prefix=route_prefix)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    tokens.logger.setLevel(logging.ERROR)
    with _connected(address):
        if not grows:
            _check_room(options, is_new=name not in serve.status().applications)
        serve.start(http_options={"host": host, "port": port, "request_timeout_s": REQUEST_SECONDS})
        try:
            serve.run_many([target], wait_for_applications_running=False)
        except (RayServeException, ValueError) as error:
            raise DeploymentFailed(f"{name} cannot be deployed: {_in_short(str(error))}", field="name") from error
        _wait(name, seconds)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    where = _noted() if address == "auto" else address
    tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as `ray start` does; ray.init does not
    _check_listening(where)
    try:
        ray.init(address=where, log_to_driver=False, logging_level="warning")
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise InvalidOption("address", where, f"{FORMS} ({_in_short(str(error))})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _noted() -> str:
    """Where the cluster of this machine is, as RAY_ADDRESS says or ``ray start`` noted it."""
    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError as error:
        raise InvalidOption("address", "auto", f"{FORMS} (none runs on this machine)") from error


def _check_listening(address: str) -> None:
    """Ray itself would try for two minutes. All of its ports that can be connected to speak gRPC."""
    try:
        where = urlsplit(address if "://" in address else f"//{address}")
        with socket.create_connection((where.hostname or "", where.port or 0), CONNECT_SECONDS):
            pass
        with init_grpc_channel(where.netloc) as channel:
            grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
            _check_token(address, channel)
    except ValueError as error:
        raise InvalidOption("address", address, FORMS) from error
    except grpc.FutureTimeoutError as error:
        raise InvalidOption("address", address, f"{FORMS} (no Ray cluster listens there)") from error
    except OSError as error:
        raise InvalidOption("address", address, f"{FORMS} ({error.strerror or error})") from error


def _check_token(address: str, channel: grpc.Channel) -> None:
    try:
        channel.unary_unary(ANY_CALL)(b"", timeout=CONNECT_SECONDS)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            takes = "it needs the token it was started with, in RAY_AUTH_TOKEN or ~/.ray/auth_token"
            raise InvalidOption("address", address, f"{FORMS} ({takes})") from error


def _check_room(options: Options, is_new: bool) -> None:
    """Ray would wait for it. A replica fits on one node; what is deployed already makes room for what replaces it."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = {name: amount for name, amount in options.resources.items() if amount}
    room = sum(_fitting(node, needed) for node in nodes)
    if is_new:
        room = min(room, _fitting(ray.available_resources(), needed))
    if options.first > room:
        each = " and ".join(f"{amount:g} {name}" for name, amount in needed.items())
        field = "min_replicas" if options.max_replicas else "replicas"
        raise InvalidOption(
            field,
            options.first,
            f"at most {room}: the cluster's {len(nodes)} nodes have no room for more at {each} each",
        )


def _fitting(resources: Mapping[str, float], needed: Mapping[str, float]) -> int:
    fractions = (resources.get(name, 0) / amount for name, amount in needed.items())
    return int(min(fractions, default=MOST_REPLICAS) + ROUNDING)


def _wait(name: str, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while True:
        now = serve.status().applications[name]
        if now.status == "RUNNING":
            return
        why = "; ".join(filter(None, (now.message, *(each.message for each in now.deployments.values()))))
        if now.status == "DEPLOY_FAILED":
            raise DeploymentFailed(f"{name} does not start: {_in_short(why)}", field="name", value=name)
        if time.monotonic() > ends:
            raise DeploymentFailed(
                f"{name} is not up after {seconds:g} seconds: {_in_short(why) or now.status}", field="name", value=name
            )
        time.sleep(LOOK_SECONDS)


def _in_short(why: str) -> str:
    """Our own error within Ray's traceback, or its last line."""
    ours = OUR_ERROR.findall(why)
    return ours[-1] if ours else why.strip().rpartition("\n")[2]
