"""Connections, byte by byte: who is answered, who is noticed to be gone, and what is read of what is no HTTP."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from service.api.exchange import exchange_of, unless_client_leaves
from service.cli import http_protocol as http_protocol_module
from service.cli.http_protocol import CONTINUE, Terms, http_protocol
from service.errors import ClientLeft, LowfirstError

TIMEOUT = 60
HOST = b"Host: x\r\n"


@dataclass
class App:
    """``/wait`` answers once it is told to, all else at once: with its method and what came of its body.

    Attributes:
        begun, left: set when ``/wait`` begins, and when its client is gone.
    """

    begun: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await (await self._answer(Request(scope, receive)))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.url.path == "/unread":
            return PlainTextResponse("unread")
        body = await request.body()
        exchange = exchange_of(request.scope)
        assert exchange is not None
        if exchange.broken is not None:
            return PlainTextResponse(exchange.broken.message, exchange.broken.status)
        if request.url.path == "/wait":
            self.begun.set()
            try:
                await unless_client_leaves(request, self._told_to())
            except ClientLeft:
                self.left.set()
        return JSONResponse([request.method, body.decode("latin-1")])

    async def _told_to(self) -> None:
        while not self.go.is_set():
            await asyncio.sleep(0.01)


def refuse(error: LowfirstError) -> Response:
    """The answer to a request that the app does not see."""
    return PlainTextResponse(error.message, error.status, {"Connection": "close"})


@pytest.fixture
def app() -> App:
    """What is served."""
    return App()


@pytest.fixture
def terms() -> Terms:
    """Of every connection."""
    return Terms(TIMEOUT, refuse)


@pytest.fixture
def connect(app: App, terms: Terms) -> Iterator[Callable[[], socket.socket]]:
    """``connect()``: a bare connection to a server of ``app``."""
    config = uvicorn.Config(app, http=http_protocol(terms), lifespan="off", port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    address = server.servers[0].sockets[0].getsockname()
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(socket.create_connection(address, timeout=TIMEOUT)))
    app.go.set()
    server.should_exit = True
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def received(opened: socket.socket, end: bytes) -> None:
    """Read until what came ends so."""
    so_far = b""
    while not so_far.endswith(end):
        piece = opened.recv(65536)
        assert piece
        so_far += piece


def answers(opened: socket.socket) -> list[tuple[int, str]]:
    """Status and body of every answer until the server hangs up; what only says that it goes on is passed over."""
    left = b"".join(iter(lambda: opened.recv(65536), b""))
    found = []
    while left:
        head, _, left = left.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if status == 100:
            continue
        size = int(head.lower().partition(b"content-length: ")[2].split()[0])
        found.append((status, left[:size].decode()))
        left = left[size:]
    return found


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.0", b"websocket\r\nUpgrade: h2c"])
@pytest.mark.parametrize(
    "form", [b"Content-Length: 4\r\n\r\nbody", b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("cut", [0, 1, 40, -1], ids=lambda cut: f"cut at {cut}")
def test_upgrade_is_not_offered_and_the_request_is_read_without(
    connect: Callable[[], socket.socket], upgrade: bytes, form: bytes, cut: int
) -> None:
    head = b"POST /?a=1 HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + upgrade
    request = head + b"\r\nHTTP2-Settings: AAMAAABk\r\n" + form
    opened = connect()
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.sendall(request[:cut])
    opened.sendall(request[cut:])
    opened.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    assert answers(opened) == [(200, '["POST","body"]'), (200, '["GET",""]')]


def test_many_upgrades_in_one_piece_are_all_answered(connect: Callable[[], socket.socket]) -> None:
    one = b"PUT / HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\nx"
    opened = connect()
    opened.sendall(one * 500 + b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    assert answers(opened) == [(200, '["PUT","x"]')] * 500 + [(200, '["GET",""]')]


def test_body_that_stops_to_be_http_is_answered_by_its_route(connect: Callable[[], socket.socket]) -> None:
    opened = connect()
    opened.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\nno number\r\n")
    assert answers(opened) == [(400, "the request is not valid HTTP")]


def test_body_that_finds_no_memory_is_no_fault_of_the_client(
    connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(http_protocol_module.BoundedHttp.__base__, "on_body", exhausted)
    opened = connect()
    opened.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc")
    assert answers(opened) == [(500, "there is no memory for the request")]


def test_request_before_one_that_is_broken_gets_its_own_answer(connect: Callable[[], socket.socket]) -> None:
    whole = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx"
    broken = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nno number\r\n"
    opened = connect()
    opened.sendall(whole + broken)
    assert answers(opened) == [(200, '["POST","x"]'), (400, "the request is not valid HTTP")]


def test_request_before_what_is_no_request_is_answered(connect: Callable[[], socket.socket], app: App) -> None:
    opened = connect()
    opened.sendall(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
    assert app.begun.wait(TIMEOUT)
    opened.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
    opened.sendall(b"more of it")
    app.go.set()
    assert answers(opened) == [(200, '["GET",""]')]


def test_request_that_was_answered_before_its_body_broke_is_answered_once(
    connect: Callable[[], socket.socket],
) -> None:
    opened = connect()
    opened.sendall(b"POST /unread HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
    received(opened, b"unread")
    opened.sendall(b"no number\r\n")
    assert opened.recv(1) == b""


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "the head has 0 Host headers; it must have 1"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", "the head has 2 Host headers; it must have 1"),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", "the head has 2 Host headers; it must have 1"),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n", "CONNECT is not supported: this is not a proxy"),
        (b"GET /?" + b"a&" * 64 + b" HTTP/1.1\r\n" + HOST + b"\r\n", "the query has 65 fields; the limit is 64"),
    ],
)
def test_head_that_no_route_is_to_see_is_refused(connect: Callable[[], socket.socket], head: bytes, words: str) -> None:
    opened = connect()
    opened.sendall(head)
    assert answers(opened) == [(400, words)]


def test_old_http_needs_no_host(connect: Callable[[], socket.socket]) -> None:
    opened = connect()
    opened.sendall(b"GET / HTTP/1.0\r\n\r\n")
    assert answers(opened) == [(200, '["GET",""]')]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_client_that_only_sends_no_more_gets_its_answer(
    connect: Callable[[], socket.socket], app: App, version: bytes
) -> None:
    opened = connect()
    opened.sendall(b"POST /wait HTTP/" + version + b"\r\n" + HOST + b"Content-Length: 1\r\n\r\nx")
    opened.shutdown(socket.SHUT_WR)
    if version == b"1.1":  # while it waits it is told to go on waiting
        received(opened, CONTINUE + CONTINUE)
    assert app.begun.wait(TIMEOUT)
    app.go.set()
    assert answers(opened) == [(200, '["POST","x"]')]
    assert not app.left.is_set()


@pytest.mark.parametrize("linger", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("next_", [b"", b"GET /", b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"], ids=["", "begun", "queued"])
def test_client_that_closes_its_connection_is_noticed(
    connect: Callable[[], socket.socket], app: App, linger: bool, next_: bytes
) -> None:
    opened = connect()
    opened.sendall(b"POST /wait HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx" + next_)
    assert app.begun.wait(TIMEOUT)
    if linger:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    opened.close()
    assert app.left.wait(TIMEOUT)


def test_client_that_leaves_in_the_middle_of_a_body_is_noticed(connect: Callable[[], socket.socket], app: App) -> None:
    opened = connect()
    opened.sendall(b"POST /wait HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nx")
    opened.shutdown(socket.SHUT_WR)
    assert opened.recv(1) == b""
    assert not app.begun.is_set()


def test_silent_connections_beyond_the_bound_do_not_keep_a_new_one_from_its_answer(
    terms: Terms, connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol_module, "SURPLUS", 2)
    terms.max_connections = 1
    served = connect()
    served.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    received(served, b'["GET",""]')
    silent = [connect() for _ in range(6)]
    new = connect()
    new.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    for refused in (new, *silent[:5]):  # the last of them may still ask
        ((status, message),) = answers(refused)
        assert (status, "connections" in message) == (503, True)
    silent[5].sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answers(silent[5])[0][0] == 503
    assert not terms.surplus
    served.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    received(served, b'["GET",""]')
