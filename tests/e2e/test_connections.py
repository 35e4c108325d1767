"""Connections to a real server: how many there may be, and how what is odd about them is answered and counted."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import httpx
import pytest

from tests.e2e.sockets import connection, counted, last_answer, next_status, rest

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

RAW = {"Content-Type": "image/jpeg"}
TIMEOUT = 60
MOST = 8
POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"


def until(is_so: Callable[[], bool]) -> None:
    """Wait for it."""
    end = time.monotonic() + TIMEOUT
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def refused(client: httpx.Client) -> httpx.Response | None:
    """The answer over a new connection, unless it is as ever."""
    with httpx.Client(base_url=client.base_url, timeout=TIMEOUT) as other:
        response = other.get("/health/live")
    return None if response.status_code == 200 else response


def test_connection_beyond_the_bound_is_told_so(serve: Serve) -> None:
    process, client = serve(max_connections=str(MOST))
    client.close()
    until(lambda: refused(client) is None)
    with ExitStack() as stack:
        idle = [stack.enter_context(closing(connection(client))) for _ in range(MOST)]
        for each in idle:  # that it is taken
            each.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert next_status(each) == 200
        response = refused(client)
        assert response is not None
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["bound"]) == (503, "too_many_connections", MOST)
        assert (response.headers["Retry-After"], response.headers["Connection"]) == ("1", "close")
        idle[0].sendall(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert next_status(idle[0]) == 200  # those that were there before go on
    until(lambda: refused(client) is None)
    assert process.poll() is None


def test_body_that_stops_to_be_http_is_a_bad_request_of_its_route(server: Server, jpeg: bytes) -> None:
    client = server[1]
    before = counted(client, "/classify", 400)
    with closing(connection(client)) as opened:
        opened.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n64\r\n" + jpeg[:100] + b"\r\nno number\r\n")
        status, error = last_answer(opened)
    assert (status, error["code"]) == (400, "bad_request")
    assert counted(client, "/classify", 400) == before + 1
    assert client.post("/classify", content=jpeg, headers=RAW).status_code == 200


def test_client_that_leaves_before_its_body_is_whole_counts_as_one_that_left(server: Server, jpeg: bytes) -> None:
    client = server[1]
    before = counted(client, "/classify", 499)
    with closing(connection(client)) as opened:
        opened.sendall(POST + f"Content-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg[:100])
    until(lambda: counted(client, "/classify", 499) == before + 1)
    assert client.get("/stats").json()["queue"]["bytes_in_flight"] == 0


def test_image_of_a_half_closed_client_is_classified(server: Server, jpeg: bytes) -> None:
    with closing(connection(server[1])) as opened:
        opened.sendall(POST + f"Content-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg)
        opened.shutdown(socket.SHUT_WR)
        told = rest(opened)
    assert b"HTTP/1.1 200 OK" in told
    assert "label" in json.loads(told.rpartition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("path", ["/classify", "/classify?top_k=1"])
@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
def test_image_with_an_upgrade_that_is_not_offered_is_classified(
    server: Server, jpeg: bytes, path: str, upgrade: str
) -> None:
    headers = {**RAW, "Connection": "Upgrade, HTTP2-Settings", "Upgrade": upgrade, "HTTP2-Settings": "AAMAAABk"}
    assert server[1].post(path, content=jpeg, headers=headers).status_code == 200
