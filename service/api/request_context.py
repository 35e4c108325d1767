"""Context of a request before any route runs: its id, its arrival; and its log line and counters afterwards."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections.abc import Awaitable, Callable
from functools import cache as memoise
from functools import partial
from random import getrandbits

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Draining, LowfirstError
from service.log import current_request, logger
from service.metrics import Metrics

HEADER = b"x-request-id"
UNKNOWN_ROUTE = "unknown"
ACCEPTED_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
CUT = "graceful shutdown exceeded"  # in uvicorn's message to cancelled tasks

Respond = Callable[[Request, Exception], Awaitable[Response]]


class RequestContext:
    """ASGI middleware: sets the ``X-Request-ID`` and the arrival, counts the answer, logs it at debug level.

    ``on_error`` answers errors without a handler. Starlette would do so outside of this middleware, uncounted and
    without the id in the headers. ``on_stop`` answers requests that the drain timeout cuts off; uvicorn would use its
    own message.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, on_error: Respond, on_stop: Respond) -> None:
        self.app = app
        self._requests = memoise(metrics.requests.labels)  # of few routes and codes
        self._seconds = memoise(metrics.request_seconds.labels)
        self.on_error = on_error
        self.on_stop = on_stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, partial(_send_quietly, send))
            return
        arrival = time.monotonic()
        id_ = _given_id(scope) or new_id()
        name = id_.decode()
        scope["state"] = {**scope.get("state", {}), "arrival": arrival, "request_id": name}
        current_request.set(name)  # each request is a task of its own, so nothing has to be reset
        code = 0

        async def send_counted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"] = [*message["headers"], (HEADER, id_)]
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        except Exception as error:
            if code:  # the answer has already begun
                raise
            response = await self.on_error(Request(scope), error)
            await response(scope, receive, send_counted)
        except asyncio.CancelledError as cut:
            if code or CUT not in str(cut):
                raise
            response = await self.on_stop(Request(scope), Draining("the server stopped before it could answer"))
            await response(scope, receive, send_counted)
        finally:
            seconds = time.monotonic() - arrival
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            self._requests(route, code).inc()
            self._seconds(route).observe(seconds)
            if logger.isEnabledFor(logging.DEBUG):
                _log(scope["method"], route, code, seconds)


async def _send_quietly(send: Send, message: Message) -> None:
    """Starlette logs the traceback of an exception at start-up; for our errors the caller prints the message
    instead."""
    if message["type"] == "lifespan.startup.failed" and isinstance(sys.exception(), LowfirstError):
        message = {**message, "message": ""}
    await send(message)


def _log(method: str, route: str, code: int, seconds: float) -> None:
    """Log the route instead of the address, which belongs to the client."""
    ms = round(1e3 * seconds, 3)
    told = {"method": method, "route": route, "code": code, "ms": ms}
    logger.debug("%s %s %d in %s ms", method, route, code, ms, extra=told)


def new_id() -> bytes:
    """An id for a request that brought none."""
    return b"%032x" % getrandbits(128)


def _given_id(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == HEADER and ACCEPTED_ID.fullmatch(value):
            return bytes(value)
    return None


def request_id(request: Request) -> str:
    """The id under which a request is logged and answered."""
    return str(getattr(request.state, "request_id", ""))


def arrival(request: Request) -> float:
    """When the request's head arrived, on the clock of ``time.monotonic``."""
    return float(request.state.arrival)
