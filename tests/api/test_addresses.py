"""Addresses with a slash at the end, and under a proxy's prefix: answered where they are, never by a redirect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.api.addresses import OWN
from service.errors import InvalidOption

pytestmark = pytest.mark.anyio

RAW = {"Content-Type": "image/jpeg"}
PAGES = ("/docs", "/redoc", "/openapi.json", "/console/console.js", "/health/ready", "/stats", "/models", "/v2",
         "/v2/models/tiny", "/config/threshold")  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
async def test_a_slash_at_the_end_changes_nothing(client: httpx.AsyncClient, path: str) -> None:
    plain, slashed = await client.get(path), await client.get(path + "/")
    assert (plain.status_code, slashed.status_code) == (200, 200)
    assert slashed.headers["Content-Type"] == plain.headers["Content-Type"]


async def test_a_slash_at_the_end_opens_no_door(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    async with connect(make_app(api_key="api-key-0123456789", metrics_key_required=True)) as client:
        for path in ("/metrics/", "/stats/", "/config/", "/config/threshold/"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post("/classify/", content=jpeg, headers=RAW)).status_code == 401
        assert (await client.patch("/config/threshold/", json={"threshold": 0.5})).status_code == 403


@pytest.mark.parametrize("path", ["/classify//", "//classify", "/nowhere/", "/docs//", "/health/"])
async def test_no_other_address_is_redirected(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get("http://test" + path)).status_code == 404


@pytest.mark.parametrize("prefix", ["/vision", "/teams/vision-1", "/vision/"])
async def test_under_a_prefix_everything_is_found_with_it_and_without(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes, prefix: str
) -> None:
    bare = prefix.rstrip("/")
    async with connect(make_app(root_path=prefix)) as client:
        for kept in (bare, ""):  # by the proxy
            assert (await client.get(kept + "/")).headers["Content-Type"].startswith("text/html")
            assert (await client.post(kept + "/classify", content=jpeg, headers=RAW)).status_code == 200
            assert (await client.post(kept + "/classify/", content=jpeg, headers=RAW)).status_code == 200
            assert list((await client.get(kept + "/v2/models/huge")).json()) == ["error"]
            assert (await client.get(kept + "/openapi.json")).json()["servers"] == [{"url": bare}]
            assert f"'{bare}/openapi.json'" in (await client.get(kept + "/docs")).text


@pytest.mark.parametrize("prefix", ["vision", "/vi sion", "/../x", "//vision", "http://x/vision", "/vision?x", "/a//b"])
async def test_what_is_no_prefix_is_refused(make_app: Callable[..., FastAPI], prefix: str) -> None:
    with pytest.raises(ValueError, match="root_path"):
        make_app(root_path=prefix)


async def test_a_prefix_that_is_also_a_route_is_refused(make_app: Callable[..., FastAPI]) -> None:
    served = {"/" + path.split("/")[1] for path in make_app().openapi()["paths"]}
    assert served <= set(OWN)
    for prefix in (*served, "/v2/models"):
        with pytest.raises(InvalidOption, match="LOWFIRST_ROOT_PATH is '/"):
            make_app(root_path=prefix)
