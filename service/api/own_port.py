"""A port for this process only, beside the one that a load balancer or Ray Serve distributes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import uvicorn
from starlette.types import ASGIApp

from service.errors import InvalidOption

PORT, HOST = "LOWFIRST_METRICS_PORT", "LOWFIRST_METRICS_HOST"
CLOSE_SECONDS = 1


def bind_own(host: str, port: int) -> tuple[socket.socket, str]:
    """A listener, and its public address.

    Raises:
        InvalidOption: the port cannot be used, or the address is of no use to others.
    """
    if _is_any(host):
        raise InvalidOption(HOST, host, "the one address of this machine that Prometheus reaches")
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((where[0], port), family=family)
    except OSError as error:
        raise InvalidOption(PORT, port, f"a free port at {host} ({error.strerror})") from error
    name = f"[{host}]" if ":" in host else host
    return listener, f"{name}:{listener.getsockname()[1]}"


class HandedPort:
    """``app`` answers at ``address``, where the parent of several processes listens and hands over connections."""

    def __init__(self, app: ASGIApp, address: str) -> None:
        self.app = app
        self.address = address

    async def __aenter__(self) -> HandedPort:
        return self

    async def __aexit__(self, *_: object) -> None:
        """The parent closes it."""


class OwnPort:
    """``async with`` it: ``app`` answers at ``address``. The port is taken at once, the app starts with the block.

    Raises as ``bind_own``.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._listener, self.address = bind_own(host, port)
        self._server = _Beside(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )

    async def __aenter__(self) -> OwnPort:
        self._serving = asyncio.create_task(self._server.serve([self._listener]))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        await self._serving


class _Beside(uvicorn.Server):
    """Leaves signals to the main server."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _is_any(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return not host
