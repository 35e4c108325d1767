"""Bare connections to a real server, and what comes back over them."""

from __future__ import annotations

import json
import socket
from http.client import HTTPResponse
from typing import Any

import httpx

TIMEOUT = 60


def connection(client: httpx.Client) -> socket.socket:
    """A bare connection to the client's server."""
    return socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=TIMEOUT)


def next_status(opened: socket.socket) -> int:
    """The status of the next response, which is read whole; the connection stays open."""
    response = HTTPResponse(opened)
    response.begin()
    response.read()
    return response.status


def rest(opened: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    return b"".join(iter(lambda: opened.recv(65536), b""))


def last_answer(opened: socket.socket) -> tuple[int, dict[str, Any]]:
    """The status and the error of what the server says before it hangs up."""
    head, _, body = rest(opened).partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    assert f"x-request-id: {error['request_id']}".encode() in head.lower()
    return int(head.split()[1]), error


def counted(client: httpx.Client, route: str, code: int) -> float:
    """So many requests as ``/metrics`` tells."""
    wanted = f'lowfirst_requests_total{{code="{code}",route="{route}"}} '
    return sum(float(line.split()[-1]) for line in client.get("/metrics").text.splitlines() if line.startswith(wanted))
