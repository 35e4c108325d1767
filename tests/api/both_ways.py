"""Each request sent to two servers, one of which answers by FastAPI's stack alone: they must say the same."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI

from service.api.direct import Direct

ROUTES = ("/classify", "/classify/json", "/classify/batch")
OF_CHANCE = ("content-length", "server-timing")  # as digits of times are
FLOAT = re.compile(r"\d+\.\d+(e-?\d+)?|\d+e-?\d+")
TIMING = re.compile(r'"timing_ms":\{[^}]*\}')
IMPOSSIBLE_DEADLINE = "deadline_ms=0.0001"  # met or not by chance


def routed(app: FastAPI) -> FastAPI:
    """``app``, not started yet, without the layer that calls endpoints directly."""
    direct: object = Direct
    app.user_middleware = [each for each in app.user_middleware if each.cls is not direct]
    return app


class BothWays(httpx.AsyncBaseTransport):
    """Gives the answers of ``app``; those of its direct routes are compared with those of ``twin``."""

    def __init__(self, app: FastAPI, twin: FastAPI) -> None:
        self._app = httpx.ASGITransport(app)
        self._twin = httpx.ASGITransport(twin)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Called by httpx."""
        assert isinstance(request.stream, httpx.AsyncByteStream)
        read = _Read(request.stream)
        response = await self._app.handle_async_request(_with(request, read, {}))
        if request.url.path in ROUTES and IMPOSSIBLE_DEADLINE not in str(request.url):
            await response.aread()
            same_id = {"X-Request-ID": response.headers["X-Request-ID"]}
            twin = await self._twin.handle_async_request(_with(request, _Pieces(read.pieces), same_id))
            await twin.aread()
            assert _told(request, twin) == _told(request, response)
        return response


class _Read(httpx.AsyncByteStream):
    """A stream, and what was read of it."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream
        self.pieces: list[bytes] = []

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            self.pieces.append(piece)
            yield piece


class _Pieces(httpx.AsyncByteStream):
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def _with(request: httpx.Request, stream: httpx.AsyncByteStream, headers: dict[str, str]) -> httpx.Request:
    sent = httpx.Request(request.method, request.url, headers=request.headers, stream=stream)
    sent.headers.update(headers)
    return sent


def _told(request: httpx.Request, response: httpx.Response) -> tuple[int, list[tuple[str, str]], str]:
    """Status, headers and body, less what is chance: times, and of a batch numbers that depend on how it was run."""
    body = TIMING.sub("", response.text)
    if request.url.path == "/classify/batch":
        body = FLOAT.sub("", body)
    headers = [(name, "" if name in OF_CHANCE else value) for name, value in response.headers.items()]
    return response.status_code, headers, body
