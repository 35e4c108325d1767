"""What is known of a request before any route runs: its id, its arrival; and what is counted when it ends."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from random import getrandbits

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics

HEADER = b"x-request-id"
UNKNOWN_ROUTE = "unknown"
ACCEPTED_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class RequestContext:
    """ASGI middleware: takes or makes an ``X-Request-ID``, notes the arrival, counts the answer.

    ``on_error`` answers errors that no handler knows: Starlette would, but outside of here, uncounted and
    without the id in its headers.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, on_error: Callable[[Request, Exception], Awaitable[Response]]
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        arrival = time.monotonic()
        id_ = _given_id(scope) or new_id()
        scope["state"] = {**scope.get("state", {}), "arrival": arrival, "request_id": id_.decode()}
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
            if code:  # the answer has begun
                raise
            response = await self.on_error(Request(scope), error)
            await response(scope, receive, send_counted)
        finally:
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            self.metrics.requests.labels(route, code).inc()
            self.metrics.request_seconds.labels(route).observe(time.monotonic() - arrival)


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
