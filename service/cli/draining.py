"""uvicorn's server with a stop in two steps."""

from __future__ import annotations

import gc
import signal
import socket
import time
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from service.api.dependencies import Parts
from service.api.error_handlers import refusal
from service.cli.descriptors import most_connections
from service.cli.http_protocol import Terms, http_protocol
from service.log import logger
from service.settings import Settings


def http_config(app: ASGIApp, settings: Settings, parts: Parts, **more: Any) -> uvicorn.Config:
    """uvicorn's config for ``app``; ``more`` is for the protocol's ``Terms``."""
    terms = Terms(
        settings.receive_timeout_seconds,
        partial(refusal, metrics=parts.metrics),
        max_connections=most_connections(settings.max_connections),
        **more,
    )
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=http_protocol(terms),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=settings.drain_timeout_seconds,
    )


class DrainingServer(uvicorn.Server):
    """Stops in two steps on SIGTERM: not ready at once; after ``drain_delay_seconds`` the listener closes.

    Meanwhile requests are served, so that a load balancer can stop routing here; then accepted ones finish. uvicorn's
    own handler closes the listener at once; SIGINT, and a second signal, still do so.
    """

    def __init__(self, app: ASGIApp, settings: Settings, parts: Parts) -> None:
        super().__init__(http_config(app, settings, parts, is_leaving=lambda: parts.models.is_draining))
        self._models = parts.models
        self._drain_delay_seconds = settings.drain_delay_seconds
        self._closes_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called on SIGTERM and SIGINT."""
        self._models.drain()
        if sig == signal.SIGTERM and self._closes_at is None:
            logger.info("stopping: not ready, serving for %g seconds more", self._drain_delay_seconds)
            self._closes_at = time.monotonic() + self._drain_delay_seconds
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times per second; returns whether to stop."""
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the listener, and log its address."""
        await super().startup(sockets)
        leave_alone()
        for listener in (each for server in self.servers for each in server.sockets):
            host, port = listener.getsockname()[:2]
            logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)


def leave_alone() -> None:
    """Exclude everything loaded so far from garbage collection.

    A full collection walks all of PyTorch: now and then every request waited 200 ms for it.
    """
    gc.collect()
    gc.freeze()
