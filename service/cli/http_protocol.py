"""uvicorn's HTTP, with what it lacks: a bound on the bytes and on the time of a request's head."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import BadRequest, HeadTooLarge, LowfirstError, RequestTimeout

MAX_HEAD_BYTES = 32 * 1024
AROUND_HEADER = len(b": \r\n")

Refuse = Callable[[LowfirstError], Response]


def http_protocol(
    head_seconds: float,
    refuse: Refuse,
    is_leaving: Callable[[], bool] = lambda: False,
    on_close: Callable[[], None] = lambda: None,
) -> Any:
    """What ``uvicorn.Config(http=...)`` takes.

    Args:
        head_seconds: how long a request's head may take to arrive.
        refuse: gives the answer to a request that no route will see.
        is_leaving: asked at each request whether its connection closes after the answer, which tells the client so.
        on_close: told once of each connection that is closed, or is HTTP's no more.
    """
    return partial(BoundedHttp, head_seconds=head_seconds, refuse=refuse, is_leaving=is_leaving, on_close=on_close)


class BoundedHttp(HttpToolsProtocol):
    """One connection. uvicorn alone keeps one that never ends its head for ever, and all it sends of it.

    A timer runs while a head is awaited and nothing is being answered; a request that comes in one piece never starts
    it. Between requests uvicorn's own keep-alive timer runs.
    """

    def __init__(
        self,
        *given: Any,
        head_seconds: float,
        refuse: Refuse,
        is_leaving: Callable[[], bool],
        on_close: Callable[[], None],
        **named: Any,
    ) -> None:
        super().__init__(*given, **named)
        self._head_seconds = head_seconds
        self._refusal_to = refuse
        self._is_leaving = is_leaving
        self._on_close = on_close
        self._refusal: LowfirstError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._pending = 0  # bytes received since the parser last gave a whole head or part of a body
        self._received = 0  # bytes of the latest piece

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._stop_timer()
        super().connection_lost(exc)
        self._on_close()

    def handle_websocket_upgrade(self) -> None:
        """Called where a client asks for a web socket, which no route takes: another protocol refuses it."""
        super().handle_websocket_upgrade()
        self._on_close()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._received = len(data)
        self._pending += self._received
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._pending > MAX_HEAD_BYTES:
            self._refuse(_too_large(self._pending))
        elif self._timer is None and (self._in_head or not self._is_answering):
            self._start_timer()

    def on_message_begin(self) -> None:
        """Called by the parser."""
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser. What follows a body (a trailer) is no header, and not kept."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._in_head = False
        self._stop_timer()
        if max(self._pending, self._received) > MAX_HEAD_BYTES:  # of which bodies may be the most
            size = len(self.url) + sum(len(name) + len(value) + AROUND_HEADER for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._refusal = _too_large(size)
                raise self._refusal  # the parser ends with an error of its own: see send_400_response
        self._pending = 0
        super().on_headers_complete()
        if self.cycle is not None and self._is_leaving():
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Called by the parser, for each piece."""
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._pending = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Called where the parser failed."""
        self._refuse(self._refusal or BadRequest("the request is no HTTP that can be read"))

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self._head_seconds, self._timed_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timed_out(self) -> None:
        self._timer = None
        if self._is_answering:  # a pipelined request's head: the keep-alive timer will run after the answer
            return
        if self._in_head:
            self._refuse(
                RequestTimeout(f"the request's head did not come in {self._head_seconds:g} seconds", field="head")
            )
        else:
            self.transport.close()

    def _refuse(self, error: LowfirstError) -> None:
        """Close, and say why unless an answer to an earlier request is under way."""
        if not self._is_answering:
            response = self._refusal_to(error)
            headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
            lines = [name + b": " + value + b"\r\n" for name, value in headers]
            self.transport.write(STATUS_LINE[response.status_code] + b"".join(lines) + b"\r\n" + bytes(response.body))
        self.transport.close()


def _too_large(size: int) -> HeadTooLarge:
    return HeadTooLarge(
        f"the request's head has {size} bytes or more; the limit is {MAX_HEAD_BYTES}",
        field="head",
        value=size,
        bound=MAX_HEAD_BYTES,
    )
