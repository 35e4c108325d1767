"""How a server stops: what was accepted is answered, and nothing new is promised."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable

import httpx
import pytest

from tests.e2e.sockets import connection, rest

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

RAW = {"Content-Type": "image/jpeg"}
TIMEOUT = 60


def begin(opened: socket.socket, client: httpx.Client, jpeg: bytes) -> None:
    """Send the head and half the body of a request, and wait until it is accepted."""
    opened.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n")
    opened.sendall(f"Content-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg[:100])
    wait_until_received(client)


def wait_until_received(client: httpx.Client) -> None:
    """Until a part of a body is there."""
    end = time.monotonic() + TIMEOUT
    while client.get("/stats").json()["queue"]["bytes_in_flight"] == 0:
        assert time.monotonic() < end


def finish(opened: socket.socket, jpeg: bytes) -> bytes:
    """Send the other half, and read the answer until the server closes the connection."""
    opened.sendall(jpeg[100:])
    return rest(opened)


def wait_until_closed(idle: socket.socket, client: httpx.Client) -> None:
    """Until the server hangs up on an idle connection, which it does once its listener is closed; see that it is."""
    assert idle.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connection(client)


def test_sigterm_finishes_what_was_accepted_and_succeeds(serve: Serve, jpeg: bytes) -> None:
    process, client = serve(drain_delay_seconds="0.1")
    with connection(client) as accepted, connection(client) as idle:
        begin(accepted, client, jpeg)
        process.send_signal(signal.SIGTERM)
        wait_until_closed(idle, client)
        assert process.poll() is None
        assert finish(accepted, jpeg).startswith(b"HTTP/1.1 200 ")
    assert process.wait(TIMEOUT) == 0


def test_sigterm_finishes_a_request_that_asked_for_an_upgrade(serve: Serve, jpeg: bytes) -> None:
    process, client = serve(drain_delay_seconds="0.1")
    with connection(client) as accepted, connection(client) as idle:
        accepted.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n")
        accepted.sendall(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n")
        accepted.sendall(f"Content-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg[:100])
        wait_until_received(client)
        process.send_signal(signal.SIGTERM)
        wait_until_closed(idle, client)
        assert finish(accepted, jpeg).startswith(b"HTTP/1.1 200 ")
    assert process.wait(TIMEOUT) == 0


def test_sigterm_drains_first_and_a_second_one_stops_now(serve: Serve, jpeg: bytes) -> None:
    process, client = serve(drain_delay_seconds="3600")
    with connection(client) as accepted, connection(client) as idle:
        begin(accepted, client, jpeg)
        assert client.get("/health/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        end = time.monotonic() + TIMEOUT
        while client.get("/health/ready").status_code == 200:
            assert time.monotonic() < end
        response = client.get("/health/ready")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        assert client.get("/health/live").status_code == 200
        assert client.post("/classify", content=jpeg, headers=RAW).status_code == 200
        with connection(client):
            pass  # new connections are taken, too
        process.send_signal(signal.SIGTERM)
        wait_until_closed(idle, client)
        assert finish(accepted, jpeg).startswith(b"HTTP/1.1 200 ")
    assert process.wait(TIMEOUT) == -signal.SIGTERM


def test_sigint_stops_at_once_and_gives_up_what_never_ends(serve: Serve, jpeg: bytes) -> None:
    process, client = serve(drain_delay_seconds="3600", drain_timeout_seconds="1")
    with connection(client) as accepted:
        begin(accepted, client, jpeg)
        process.send_signal(signal.SIGINT)
        answer = rest(accepted)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "unavailable"
        assert process.wait(TIMEOUT) == 128 + signal.SIGINT
