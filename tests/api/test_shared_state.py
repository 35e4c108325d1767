"""Two apps over one Redis, as two replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.errors import InvalidOption, StoreUnavailable
from tests.conftest import RedisServer

pytestmark = pytest.mark.anyio

RAW = {"Content-Type": "image/jpeg"}
MakeApp = Callable[..., FastAPI]
Connect = Callable[..., Any]


async def metric(client: httpx.AsyncClient, name: str) -> float:
    """Sum of a metric over its labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


async def test_image_that_one_replica_answered_is_answered_by_another_for_nothing(
    make_app: MakeApp, connect: Connect, jpeg: bytes, redis_server: RedisServer
) -> None:
    shared = {"redis_url": redis_server.url, "cache_ttl_seconds": 60}
    async with connect(make_app(**shared)) as one, connect(make_app(**shared)) as other:
        computed = (await one.post("/classify?threshold=1", content=jpeg, headers=RAW)).json()
        cached = (await other.post("/classify?threshold=1", content=jpeg, headers=RAW)).json()
        low = (await other.post("/classify?threshold=0", content=jpeg, headers=RAW)).json()
        assert (cached["cached"], cached["mmacs"], cached["exit"]) == (True, 0, "high")
        assert (low["cached"], low["exit"]) == (True, "low")
        assert cached["top_k"] == computed["top_k"]
        assert await metric(other, "lowfirst_images_total") == 2
        assert await metric(other, "lowfirst_multiply_adds_total") == 0
        assert (await other.get("/stats")).json()["images"] == 2


async def test_redis_without_a_ttl_shares_no_results(
    make_app: MakeApp, connect: Connect, jpeg: bytes, redis_server: RedisServer
) -> None:
    async with connect(make_app(redis_url=redis_server.url)) as client:
        answers = [(await client.post("/classify", content=jpeg, headers=RAW)).json() for _ in range(2)]
        assert [answer["cached"] for answer in answers] == [False, False]
    assert redis_server.client.keys("*") == [b"lowfirst:config"]


async def test_state_in_memory_is_up_and_valid(client: httpx.AsyncClient) -> None:
    assert await metric(client, "lowfirst_store_up") == 1
    assert await metric(client, "lowfirst_config_invalid") == 0


async def test_config_out_of_bounds_shows(make_app: MakeApp, connect: Connect, redis_server: RedisServer) -> None:
    redis_server.client.set("lowfirst:config", "by hand")
    async with connect(make_app(redis_url=redis_server.url)) as client:
        assert await metric(client, "lowfirst_config_invalid") == 1
        assert (await client.get("/config/threshold")).json()["threshold"] == 0.65


async def test_redis_that_does_not_answer_ends_the_start(make_app: MakeApp) -> None:
    with pytest.raises(StoreUnavailable, match=r"LOWFIRST_REDIS_URL: 127\.0\.0\.1:1 does not answer"):
        make_app(redis_url="redis://127.0.0.1:1")


async def test_redis_that_need_not_answer_is_done_without(
    make_app: MakeApp, connect: Connect, jpeg: bytes, error_of: Callable[..., dict[str, Any]]
) -> None:
    app = make_app(redis_url="redis://127.0.0.1:1", redis_optional=True, cache_ttl_seconds=60)
    async with connect(app) as client:
        assert (await client.post("/classify", content=jpeg, headers=RAW)).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200
        assert await metric(client, "lowfirst_store_up") == 0
        error_of(await client.patch("/config/threshold", json={"threshold": 0.5}), 503, "store_unavailable")


async def test_empty_url_is_none(make_app: MakeApp) -> None:
    make_app(redis_url="")


async def test_results_cannot_expire_where_there_is_no_redis(make_app: MakeApp) -> None:
    with pytest.raises(InvalidOption, match="CACHE_TTL_SECONDS is 60; it must be 0 where LOWFIRST_REDIS_URL is unset"):
        make_app(cache_ttl_seconds=60)
