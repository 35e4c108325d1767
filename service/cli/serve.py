"""``lowfirst serve``."""

from __future__ import annotations

import gc
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Annotated

import typer
import uvicorn

from service.errors import LowfirstError
from service.log import configure, logger
from service.settings import load_settings


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. [default: LOWFIRST_HOST or 127.0.0.1]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port, 0 for a free one. [default: LOWFIRST_PORT or 8000]")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to serve. [default: LOWFIRST_MODEL or the shipped one]")
    ] = None,
) -> None:
    """Serve a model over HTTP. All settings: environment variables LOWFIRST_*, see docs/settings.md."""
    given = {"host": host, "port": port, "model": model}
    settings = load_settings({name: value for name, value in given.items() if value is not None})
    configure(settings.log_level, settings.log_format)

    from service.api.error_handlers import refusal
    from service.app import create_app
    from service.cli.http_protocol import http_protocol

    try:
        app = create_app(settings)
    except LowfirstError as error:
        if settings.log_format == "text":
            raise  # told as every command tells it
        logger.critical(error.message)
        raise typer.Exit(1) from error
    parts = app.state.parts
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=http_protocol(settings.receive_timeout_seconds, refuse=partial(refusal, metrics=parts.metrics)),
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=settings.drain_timeout_seconds,
    )
    server = DrainingServer(config, on_drain=parts.models.drain, drain_delay_seconds=settings.drain_delay_seconds)
    server.run()
    if not server.started:
        raise typer.Exit(1)


class DrainingServer(uvicorn.Server):
    """Stops in two steps on SIGTERM: readiness falls at once, the listener closes ``drain_delay_seconds`` later.

    In between requests are served, so that a load balancer has time to look away; then accepted ones
    finish. uvicorn's own handler closes the listener at once, as SIGINT still does here, and a second signal.
    """

    def __init__(self, config: uvicorn.Config, on_drain: Callable[[], None], drain_delay_seconds: float) -> None:
        super().__init__(config)
        self._on_drain = on_drain
        self._drain_delay_seconds = drain_delay_seconds
        self._closes_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called on SIGTERM and SIGINT."""
        self._on_drain()
        if sig == signal.SIGTERM and self._closes_at is None:
            logger.info("stopping: not ready, serving for %g seconds more", self._drain_delay_seconds)
            self._closes_at = time.monotonic() + self._drain_delay_seconds
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn asks ten times a second whether to stop."""
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the listener, and say where it is. What was loaded until now is taken out of garbage collection."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # else a full collection walks all of PyTorch: every request waited 200 ms for it, now and then
        for listener in (each for server in self.servers for each in server.sockets):
            host, port = listener.getsockname()[:2]
            logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
