"""Every error has the one shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.api.error_handlers import MAX_ECHO, echo

RAW = {"Content-Type": "image/jpeg"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nowhere", {}, 404, "not_found"),
        ("GET", "/static-offline-docs/nothing.js", {}, 404, "not_found"),
        ("GET", "/classify", {}, 405, "method_not_allowed"),
        ("DELETE", "/config/threshold", {}, 405, "method_not_allowed"),
        ("POST", "/classify?top_k=0", {}, 422, "invalid_field"),
        ("PATCH", "/config/threshold", {"json": {"threshold": 7}}, 422, "invalid_field"),
        (
            "PATCH",
            "/config/threshold",
            {"content": "{", "headers": {"Content-Type": "application/json"}},
            400,
            "bad_request",
        ),
        (
            "PATCH",
            "/config/threshold",
            {"json": {"threshold": 0}, "headers": {"If-Match": "9"}},
            412,
            "config_conflict",
        ),
        ("POST", "/classify", {"content": b"text", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_body"),
        ("POST", "/classify", {"content": b"text"}, 415, "unsupported_body"),
        ("POST", "/classify", {"content": b"text", "headers": RAW}, 415, "unsupported_image"),
        ("POST", "/classify", {"content": b"x", "headers": {**RAW, "Content-Encoding": "br"}}, 415, "unsupported_body"),
        ("POST", "/classify", {"content": b"", "headers": RAW}, 400, "bad_request"),
        ("POST", "/classify", {"headers": {**RAW, "Content-Length": "100000000"}}, 413, "image_too_large"),
        ("POST", "/classify", {"headers": {**RAW, "Content-Length": "many"}}, 400, "bad_request"),
    ],
)
async def test_every_error_has_the_one_shape(
    client: httpx.AsyncClient,
    error_of: Callable[..., dict[str, Any]],
    method: str,
    path: str,
    options: dict[str, Any],
    status: int,
    code: str,
) -> None:
    error_of(await client.request(method, path, **options), status, code)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/classify", "POST"),
        ("POST", "/config/threshold", "GET, PATCH"),
        ("DELETE", "/v2/models/tiny/infer", "POST"),
        ("DELETE", "/docs", "GET"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    assert (await client.request(method, path)).headers["Allow"] == allowed


@pytest.mark.parametrize(
    ("value", "echoed"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("text", "text"),
        ([1, math.nan], [1, "nan"]),
        (math.inf, "inf"),
        (10**400, "1" + "0" * (MAX_ECHO - 1) + "…"),
        ("x" * 1000, "x" * MAX_ECHO + "…"),
        (b"\xff", "b'\\xff'"),
    ],
)
def test_a_value_is_echoed_short_and_plain(value: object, echoed: object) -> None:
    assert echo(value) == echoed
