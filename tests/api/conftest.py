"""Apps in this process over the tiny store, and clients that speak ASGI to them."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.api.both_ways import BothWays, routed

MakeApp = Callable[..., FastAPI]
Connect = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]
ErrorOf = Callable[[httpx.Response, int, str], dict[str, Any]]

SMALL = {
    "model": "tiny",
    "device": "cpu",
    "precision": "float32",
    "runtime": "eager",
    "workers": 1,
    "max_batch_size": 2,
    "audit_probability": 0.0,  # an audit is drawn by chance, and counts
}


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop of the tests marked ``anyio``."""
    return "asyncio"


@pytest.fixture(scope="session")
def make_app(tiny_store: Path) -> MakeApp:
    """``make_app(**settings)``: an app that serves the tiny model, not started yet."""
    return lambda **settings: create_app(Settings(**{**SMALL, "model_store": tiny_store, **settings}))


@pytest.fixture(scope="session")
def connect() -> Connect:
    """``async with connect(app) as client``: the app is started, and stopped at the end; what escapes it is raised."""

    @asynccontextmanager
    async def started(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield client

    return started


@pytest.fixture(scope="session")
async def client(make_app: MakeApp, connect: Connect) -> AsyncIterator[httpx.AsyncClient]:
    """A client of one app for all tests that change nothing; it sees to it that both ways give the same answers."""
    app, twin = make_app(), routed(make_app())
    async with (
        connect(app),
        connect(twin),
        httpx.AsyncClient(transport=BothWays(app, twin), base_url="http://test") as client,
    ):
        yield client


@pytest.fixture
async def fresh(make_app: MakeApp, connect: Connect) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app of the test's own."""
    async with connect(make_app()) as client:
        yield client


@pytest.fixture(scope="session")
def jpeg(make_jpeg: Callable[..., bytes]) -> bytes:
    """A photograph."""
    return make_jpeg(1)


@pytest.fixture(scope="session")
def forms(jpeg: bytes) -> dict[str, dict[str, Any]]:
    """The photograph in each form that ``POST /classify`` reads, as arguments of a request."""
    return {
        "raw": {"content": jpeg, "headers": {"Content-Type": "image/jpeg"}},
        "octets": {"content": jpeg, "headers": {"Content-Type": "application/octet-stream"}},
        "file": {"files": {"image": ("photograph.jpg", jpeg, "image/jpeg")}},
        "field": {"files": {"image": (None, jpeg)}},
        "json": {"json": {"image": base64.b64encode(jpeg).decode()}},
    }


@pytest.fixture(scope="session")
def error_of() -> ErrorOf:
    """``error_of(response, status, code)``: its error, once it is seen to have the one shape."""

    def check(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
        assert response.status_code == status, response.text
        assert list(response.json()) == ["error"]
        error: dict[str, Any] = response.json()["error"]
        assert set(error) == {"code", "message", "field", "value", "bound", "request_id"}
        assert error["code"] == code
        assert error["message"]
        assert error["request_id"] == response.headers["X-Request-ID"]
        return error

    return check
