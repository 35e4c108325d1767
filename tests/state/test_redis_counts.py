"""Counts of a trial over a real Redis: of every process that shares it, and without it of those that are near."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from service.state.redis.counts import Counts, RedisCounts
from service.state.redis.link import RedisLink
from tests.conftest import RedisServer

pytestmark = pytest.mark.anyio

NEAR = [{"images": 1000}]


async def near(_: float, __: Counts | None) -> Sequence[Counts]:
    return NEAR


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def joined(redis_server: RedisServer, anyio_backend: str) -> AsyncIterator[Callable[[], RedisCounts]]:  # noqa: ARG001
    links: list[RedisLink] = []

    def join() -> RedisCounts:
        links.append(RedisLink(redis_server.url))
        return RedisCounts(links[-1], near)

    yield join
    for link in links:
        await link.close()


async def test_each_has_what_all_others_told_last_of_the_same_trial(joined: Callable[[], RedisCounts]) -> None:
    one, two, watching = joined(), joined(), joined()
    assert await one.exchange(1.5, {"images": 3}) == []
    assert await two.exchange(1.5, {"images": 4}) == [{"images": 3}]
    assert await one.exchange(1.5, {"images": 7}) == [{"images": 4}]
    assert sorted(map(str, await watching.exchange(1.5, None))) == ["{'images': 4}", "{'images': 7}"]
    assert await watching.exchange(2.5, None) == []


async def test_without_redis_it_is_exchanged_with_those_that_are_near(
    joined: Callable[[], RedisCounts], redis_server: RedisServer
) -> None:
    one = joined()
    await one.exchange(1.5, {"images": 3})
    redis_server.kill()
    assert await one.exchange(1.5, {"images": 3}) is NEAR  # it was asked in vain,
    assert await one.exchange(1.5, {"images": 3}) is NEAR  # and is not asked again until it answers a poll
