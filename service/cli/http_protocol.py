"""uvicorn's HTTP protocol, plus limits on heads and connections, and an answer for every client that still waits.

It subclasses private parts of uvicorn. Only this file does, and its tests fail if uvicorn changes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.exchange import EXTENSION, Exchange, exchange_of
from service.cli.head import MAX_HEAD_BYTES, refusal_of, too_large
from service.errors import BadRequest, LowfirstError, RequestTimeout, TooManyConnections
from service.log import logger

# Most connections above the limit that may wait for their 503. Beyond that, the oldest gets it at once.
SURPLUS = 64
WARN_SECONDS = 10.0

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PROBE_SECONDS = 0.25

Refuse = Callable[[LowfirstError], Response]


@dataclass(slots=True)
class Terms:
    """Shared by all connections of a server.

    Attributes:
        head_seconds: how long a request's head may take to arrive.
        refuse: returns the answer to a request that no route will see.
        is_leaving: whether a connection closes after the answer, which then tells the client so; asked at each request.
        on_close: called once for each closed connection.
        max_connections: most open connections; requests over further ones are refused.
        warned: time of the last warning about this, on the clock of ``time.monotonic``.
        surplus: connections above the limit, which get no request served, oldest first.
    """

    head_seconds: float
    refuse: Refuse
    is_leaving: Callable[[], bool] = lambda: False
    on_close: Callable[[], None] = lambda: None
    max_connections: float = math.inf
    warned: float = -math.inf
    surplus: dict[BoundedHttp, None] = field(default_factory=dict)

    def warn(self) -> None:
        """Log that there are too many connections, unless that was logged a moment ago."""
        now = time.monotonic()
        if now - self.warned > WARN_SECONDS:
            self.warned = now
            logger.warning("%d connections are open, the limit: further ones get 503", self.max_connections)


def http_protocol(terms: Terms) -> Any:
    """The value for ``uvicorn.Config(http=...)``."""
    return partial(BoundedHttp, terms=terms)


class BoundedHttp(HttpToolsProtocol):
    """One connection. uvicorn alone would keep a connection with an endless head for ever, and all its bytes.

    A timer runs while a head is awaited and nothing is being answered; a request that arrives in one piece never starts
    it. Between requests uvicorn's own keep-alive timer runs.
    """

    def __init__(self, *given: Any, terms: Terms, **named: Any) -> None:
        super().__init__(*given, **named)
        self.ws_protocol_class = None  # no route takes web sockets
        self._terms = terms
        self._refusal: LowfirstError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._probing: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None  # the cycle is the latest request's, which may have to wait
        self._is_deaf = False  # what still comes cannot be read as HTTP
        self._in_head = False
        self._in_body = False
        self._pending = 0  # bytes received since the parser last gave a whole head or part of a body
        self._received = 0  # bytes of the latest piece

    # called by the event loop

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        super().connection_made(transport)
        self._start_timer()
        terms = self._terms
        if len(self.connections) > terms.max_connections:
            terms.warn()
            terms.surplus[self] = None
            if len(terms.surplus) > SURPLUS:  # the one silent for longest gives way to a new one
                next(iter(terms.surplus))._send_away()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client disconnected, or was disconnected."""
        self._stop_timer()
        self._terms.surplus.pop(self, None)
        if self._probing is not None:
            self._probing.cancel()
        super().connection_lost(exc)
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
            exchange = exchange_of(running.scope)  # type: ignore[arg-type]
            if exchange is not None and exchange.on_leave is not None:
                exchange.on_leave()
        self._terms.on_close()

    def data_received(self, data: bytes) -> None:
        """The client sent something."""
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        self._received = len(data)
        self._pending += self._received
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._fail(self._refusal or _translated(error))
            return
        if self.transport.is_closing():
            return
        if self._pending > MAX_HEAD_BYTES:
            self._fail(too_large(self._pending))
        elif self._timer is None and (self._in_head or not self._is_answering):
            self._start_timer()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client closed its sending side. It gets the answers to complete requests."""
        if not self._is_answering or self._in_body:
            return False
        self.cycle.keep_alive = False
        self._probe()
        return True

    # called by the parser

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: Exchange()}  # type: ignore[dict-item]
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header. What follows a body (a trailer) is none, and not kept."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete. If it asks for an upgrade, it is parsed again without that: see ``_feed``."""
        self._in_head = False
        self._stop_timer()
        self._refusal = self._refusal_of_head()
        if self._refusal is not None:
            raise self._refusal  # the parser ends with an error of its own
        self._pending = 0
        if self.parser.should_upgrade():
            return
        self._in_body = True
        super().on_headers_complete()
        if self._terms.is_leaving():
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._pending = 0
        if self._in_body:
            self._in_body = False
            super().on_message_complete()

    # called by uvicorn

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    # ours

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _feed(self, data: bytes) -> None:
        """Have the parser read. An upgrade is not offered, so that a request that asks for one is read as any other.

        The parser would take what follows such a head for another protocol: it is given the head again, without that.
        """
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                method, version = self.parser.get_method(), self.parser.get_http_version().encode()
                lines = [method + b" " + self.url + b" HTTP/" + version]
                lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                self.parser.feed_data(b"\r\n".join(lines) + b"\r\n\r\n")

    def _refusal_of_head(self) -> LowfirstError | None:
        terms = self._terms
        if self in terms.surplus and len(self.connections) > terms.max_connections:
            return TooManyConnections(len(self.connections), terms.max_connections)
        terms.surplus.pop(self, None)
        received = max(self._pending, self._received)
        parser = self.parser
        return refusal_of(parser.get_method(), self.url, parser.get_http_version(), self.headers, received)

    def _send_away(self) -> None:
        del self._terms.surplus[self]
        self._fail(TooManyConnections(len(self.connections), self._terms.max_connections))

    def _fail(self, error: LowfirstError) -> None:
        """Stop reading. A running answer is finished, then the connection is closed.

        If the body is at fault, its route answers, and reads ``error`` in place of the body.
        """
        self._is_deaf = True
        if not self._is_answering:
            if not self._in_body:  # else it was answered before it was whole
                self._write(self._terms.refuse(error))
            self.transport.close()
            return
        self.cycle.keep_alive = False
        if self._in_body:
            exchange = exchange_of(self.cycle.scope)  # type: ignore[arg-type]
            assert exchange is not None
            exchange.broken = error
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def _write(self, response: Response) -> None:
        headers = [*self.server_state.default_headers, *response.raw_headers]
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        self.transport.write(STATUS_LINE[response.status_code] + b"".join(lines) + b"\r\n" + bytes(response.body))

    def _probe(self) -> None:
        """Send bytes that every client ignores, now and then until there is an answer.

        A client that closed its connection, and one that closed only its sending side, look alike until something is
        sent: in the first case the client's system refuses it, and ``connection_lost`` is called.
        """
        running = self._running
        if running is None or running.response_started:
            return
        if running.scope["http_version"] == "1.1":
            self.transport.write(CONTINUE)
            self._probing = self.loop.call_later(PROBE_SECONDS, self._probe)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self._terms.head_seconds, self._timed_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timed_out(self) -> None:
        self._timer = None
        if self._is_answering:  # a pipelined request's head: the keep-alive timer will run after the answer
            return
        if self._in_head:
            seconds = self._terms.head_seconds
            self._fail(RequestTimeout(f"the request's head did not arrive within {seconds:g} seconds", field="head"))
        else:
            self.transport.close()


def _translated(error: httptools.HttpParserError) -> LowfirstError:
    """The error to answer with. The parser also reports errors that our callbacks raise."""
    if isinstance(error.__context__, MemoryError):
        return LowfirstError("there is no memory for the request")
    return BadRequest("the request is not valid HTTP")
