"""A port of each replica's own, and the list of them that Prometheus discovers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.errors import InvalidOption
from tests.conftest import RedisServer

pytestmark = pytest.mark.anyio

RAW = {"Content-Type": "image/jpeg"}
API = "api-key-0123456789"
MakeApp = Callable[..., FastAPI]
Connect = Callable[..., Any]


async def targets(client: httpx.AsyncClient) -> dict[str, str]:
    """Each listed replica's address, by its name."""
    listed = (await client.get("/metrics/targets")).json()
    return {each["labels"]["replica"]: each["targets"][0] for each in listed}


async def test_each_replica_is_listed_and_tells_of_itself_alone(
    make_app: MakeApp, connect: Connect, jpeg: bytes, redis_server: RedisServer
) -> None:
    shared = {"redis_url": redis_server.url, "metrics_port": 0}
    async with connect(make_app(**shared, replica="one")) as one:
        async with connect(make_app(**shared, replica="other")) as other, httpx.AsyncClient() as client:
            await one.post("/classify", content=jpeg, headers=RAW)
            found = await targets(other)
            assert found == await targets(one)
            assert set(found) == {"one", "other"}
            for name, images in (("one", 1), ("other", 0)):
                told = (await client.get(f"http://{found[name]}/metrics")).text
                assert f'lowfirst_request_seconds_count{{route="/classify"}} {images}.0' in told or not images
                assert (await client.get(f"http://{found[name]}/stats")).json()["images"] == images
                assert (await client.get(f"http://{found[name]}/health/ready")).status_code == 200
                assert (await client.post(f"http://{found[name]}/classify", content=jpeg)).status_code == 404
        assert set(await targets(one)) == {"one"}


async def test_without_redis_a_replica_lists_itself(make_app: MakeApp, connect: Connect) -> None:
    async with connect(make_app(metrics_port=0)) as client:
        assert set(await targets(client)) == {socket.gethostname()}


async def test_without_a_port_there_is_no_list(client: httpx.AsyncClient, error_of: Callable[..., Any]) -> None:
    error = error_of(await client.get("/metrics/targets"), 404, "not_found")
    assert error["message"].startswith("LOWFIRST_METRICS_PORT is unset")


async def test_own_port_asks_for_the_keys_that_the_server_asks_for(make_app: MakeApp, connect: Connect) -> None:
    app = make_app(metrics_port=0, api_key=API, metrics_key_required=True)
    async with connect(app) as server, httpx.AsyncClient() as client:
        key = {"X-API-Key": API}
        assert (await server.get("/metrics/targets")).status_code == 401
        ((address,),) = (each["targets"] for each in (await server.get("/metrics/targets", headers=key)).json())
        for path in ("/metrics", "/stats"):
            assert (await client.get(f"http://{address}{path}")).status_code == 401
            assert (await client.get(f"http://{address}{path}", headers=key)).status_code == 200


async def test_an_address_that_tells_prometheus_nothing_is_refused(make_app: MakeApp) -> None:
    for settings in ({"host": "0.0.0.0"}, {"metrics_host": "::"}):
        with pytest.raises(InvalidOption, match=r"LOWFIRST_METRICS_HOST is '.*'; it must be the one address"):
            make_app(metrics_port=0, **settings)


async def test_a_port_that_is_taken_is_named(make_app: MakeApp) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidOption, match=rf"METRICS_PORT is {port}; .* at 127.0.0.1 \(Address already in use"):
            make_app(metrics_port=port)
