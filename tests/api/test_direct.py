"""Direct routes: keys, origins, methods and counters hold as on every other route."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.api.both_ways import routed

pytestmark = pytest.mark.anyio

ORIGIN = "https://example.org"
KEY = {"X-API-Key": "api-key-0123456789"}
RAW = {"Content-Type": "image/jpeg"}
ASKED = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}


async def told(client: httpx.AsyncClient, jpeg: bytes) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Statuses and headers of requests of every kind, and how they were counted."""
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/classify", {"content": jpeg, "headers": {**RAW, **KEY, "Origin": ORIGIN}}),
        ("POST", "/classify", {"content": jpeg, "headers": {**RAW, **KEY, "Origin": "https://example.com"}}),
        ("POST", "/classify", {"content": jpeg, "headers": RAW}),
        ("POST", "/classify", {"content": jpeg, "headers": {**RAW, "X-API-Key": "wrong-key-0123456789"}}),
        ("POST", "/classify?treshold=1", {"content": jpeg, "headers": {**RAW, **KEY}}),
        ("POST", "/classify/", {"content": jpeg, "headers": {**RAW, **KEY}}),
        ("POST", "/classify/", {"content": jpeg, "headers": RAW}),
        ("POST", "/classify//", {"content": jpeg, "headers": {**RAW, **KEY}}),
        ("POST", "/classify/json/", {"json": {"image": b64encode(jpeg).decode()}, "headers": KEY}),
        ("POST", "/classify/batch", {"files": [("image", jpeg)] * 2, "headers": KEY}),
        ("OPTIONS", "/classify", {"headers": ASKED}),
        ("GET", "/classify", {"headers": KEY}),
        ("PUT", "/classify/batch", {"headers": KEY}),
    ]
    answers = []
    for method, path, given in requests:
        response = await client.request(method, path, **given)
        chance = ("x-request-id", "server-timing", "content-length")
        answers.append(
            (response.status_code, {name: value for name, value in response.headers.items() if name not in chance})
        )
    counted = [line for line in (await client.get("/metrics")).text.splitlines() if "_requests_total{" in line]
    return answers, counted


async def test_keys_origins_methods_and_counters_are_those_of_fastapi(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    settings = {"api_key": KEY["X-API-Key"], "cors_origins": (ORIGIN,)}
    async with connect(make_app(**settings)) as client, connect(routed(make_app(**settings))) as twin:
        direct = await told(client, jpeg)
        assert direct == await told(twin, jpeg)
    assert [status for status, _ in direct[0]] == [*(200, 200, 401, 401, 422, 200, 401, 404, 200, 200, 200, 405, 403)]


async def test_prefix_of_a_proxy_is_no_part_of_the_path(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    app = make_app()
    async with (
        connect(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app, root_path="/models"), base_url="http://test") as client,
    ):
        assert (await client.post("/models/classify", content=jpeg, headers=RAW)).status_code == 200
        assert (await client.post("/classify", content=jpeg, headers=RAW)).status_code == 200
        assert (await client.post("/modelsclassify", content=jpeg, headers=RAW)).status_code == 404
