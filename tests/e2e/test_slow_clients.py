"""Clients that are slow, or send what never ends: each is told so and its connection closed; the others are served."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from select import select

import httpx
import pytest

from service.cli.head import MAX_HEAD_BYTES
from tests.e2e.sockets import counted, last_answer, next_status

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

RAW = {"Content-Type": "image/jpeg"}
TIMEOUT = 60
PLACES = 8  # images in flight
POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"


@pytest.fixture(scope="module")
def client(serve_once: Serve) -> httpx.Client:
    """Of a server with little patience and little room."""
    return serve_once(receive_timeout_seconds="0.5", max_images_in_flight=str(PLACES))[1]


@pytest.fixture
def connect(client: httpx.Client) -> Iterator[Callable[[], socket.socket]]:
    """``connect()``: a bare connection to it."""
    address = (str(client.base_url.host), client.base_url.port or 80)
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(socket.create_connection(address, timeout=TIMEOUT)))


def flood(opened: socket.socket, piece: bytes) -> None:
    """Send ``piece`` again and again until the server hangs up."""
    end = time.monotonic() + TIMEOUT
    try:
        while time.monotonic() < end:
            opened.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        return
    pytest.fail("the server goes on reading")


def test_clients_whose_bodies_stall_do_not_keep_others_out(
    client: httpx.Client, connect: Callable[[], socket.socket], jpeg: bytes
) -> None:
    before = counted(client, "/classify", 408)
    stalled = [connect() for _ in range(PLACES)]
    for opened in stalled:
        opened.sendall(POST + f"Content-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg[:100])
    for opened in stalled:
        status, error = last_answer(opened)
        assert (status, error["code"], error["field"], error["value"]) == (408, "request_timeout", "body", 100)
    assert client.get("/stats").json()["queue"]["images_in_flight"] == 0
    assert client.post("/classify", content=jpeg, headers=RAW).status_code == 200
    assert counted(client, "/classify", 408) == before + PLACES


def test_a_body_of_drops_has_no_more_time_than_one_that_stalls(
    client: httpx.Client, connect: Callable[[], socket.socket]
) -> None:
    before = counted(client, "/classify", 408)
    opened = connect()
    opened.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    with suppress(BrokenPipeError, ConnectionResetError):  # a drop may cross the answer
        while not select([opened], [], [], 0.02)[0]:  # drops, fifty a second
            opened.sendall(b"1\r\nx\r\n")
    assert counted(client, "/classify", 408) == before + 1


def test_a_change_whose_body_stalls_is_given_up(connect: Callable[[], socket.socket]) -> None:
    opened = connect()
    opened.sendall(b"PATCH /config/threshold HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    opened.sendall(b'Content-Length: 20\r\n\r\n{"thres')
    assert last_answer(opened)[0] == 408


def test_a_head_that_stalls_is_given_up(client: httpx.Client, connect: Callable[[], socket.socket]) -> None:
    before = counted(client, "unknown", 408)
    first, second = connect(), connect()
    first.sendall(POST)
    second.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert next_status(second) == 200
    second.sendall(b"GET /hea")  # on a connection that was of use before
    for opened in (first, second):
        status, error = last_answer(opened)
        assert (status, error["code"], error["field"]) == (408, "request_timeout", "head")
    assert counted(client, "unknown", 408) == before + 2


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"\r\n\r\n"])
def test_a_connection_that_begins_no_request_is_closed(connect: Callable[[], socket.socket], sent: bytes) -> None:
    opened = connect()
    opened.sendall(sent)
    assert opened.recv(1) == b""


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * (MAX_HEAD_BYTES // 6) + b"\r\n",
        b"GET /health/live?" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["one long header", "many headers", "a long address"],
)
def test_a_head_beyond_the_limit_is_told_so(
    client: httpx.Client, connect: Callable[[], socket.socket], head: bytes
) -> None:
    before = counted(client, "unknown", 431)
    opened = connect()
    opened.sendall(head)
    status, error = last_answer(opened)
    assert (status, error["code"], error["bound"]) == (431, "head_too_large", MAX_HEAD_BYTES)
    assert counted(client, "unknown", 431) == before + 1
    assert client.get("/health/live").status_code == 200


def test_a_head_within_the_limit_is_read(client: httpx.Client) -> None:
    assert client.get("/health/live", headers={"X-Long": "x" * (MAX_HEAD_BYTES - 1000)}).status_code == 200


@pytest.mark.parametrize(
    "begun",
    [b"GET /", b"GET / HTTP/1.1\r\nX-", b"GET / HTTP/1.1\r\nX: ", POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: "],
    ids=["address", "name", "value", "trailer"],
)
def test_a_head_that_never_ends_is_not_kept(
    client: httpx.Client, connect: Callable[[], socket.socket], begun: bytes
) -> None:
    opened = connect()
    opened.sendall(begun)
    flood(opened, b"x" * 1000)
    assert client.get("/health/live").status_code == 200


def test_what_is_no_http_is_told_so_in_the_one_shape(connect: Callable[[], socket.socket]) -> None:
    opened = connect()
    opened.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # TLS
    status, error = last_answer(opened)
    assert (status, error["code"]) == (400, "bad_request")
