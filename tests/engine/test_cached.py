"""Images seen before are answered from the cache, as they would be again."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import Draining, InvalidImage
from service.state.base import CachedOutputs
from service.state.memory import MemoryResultCache
from tests.engine.serving import Case, assert_answers, in_time, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def cache() -> MemoryResultCache:
    return MemoryResultCache(capacity=100)


async def test_image_seen_before_is_answered_from_the_cache(case: Case, cache: MemoryResultCache) -> None:
    async with serving(case, case.middle, cache) as server:
        for image in case.images[:8]:
            first, again = await server.classify(image.body), await server.classify(image.body)
            assert_answers(again, case, image, case.middle)
            assert (again.top_k, again.confidences, again.exit) == (first.top_k, first.confidences, first.exit)
            assert (again.reason, again.cached, again.mmacs, again.degraded) == ("cached", True, 0, False)
            assert again.threshold == case.middle
        assert server.count("cache_requests_total", result="hit") == 8
        assert server.count("cache_requests_total", result="miss") == 8
        assert server.count("batch_size_sum", stage=case.names[0]) == 8


async def test_cached_outputs_answer_at_any_threshold(cascade: Case, cache: MemoryResultCache) -> None:
    image = cascade.images[0]
    async with serving(cascade, 1.0, cache) as server:
        await server.classify(image.body)
        for threshold in (0.0, cascade.middle, 1.0):
            await server.change_threshold(threshold)
            answer = await server.classify(image.body)
            assert answer.reason == "cached"
            assert_answers(answer, cascade, image, threshold)


async def test_escalation_completes_what_the_cache_knows(cascade: Case, cache: MemoryResultCache) -> None:
    image = cascade.images[0]
    async with serving(cascade, 0.0, cache) as server:
        await server.classify(image.body)
        escalated = await server.classify(image.body, threshold=1.0)
        assert escalated.reason == "escalated"
        assert_answers(escalated, cascade, image, 1.0)  # with each confidence once
        for threshold in (0.0, 1.0):
            assert (await server.classify(image.body, threshold=threshold)).reason == "cached"


async def test_other_bytes_are_another_image(two: Case, cache: MemoryResultCache) -> None:
    async with serving(two, 0.5, cache) as server:
        await server.classify(two.images[0].body)
        assert not (await server.classify(two.images[0].body + b"\0")).cached


async def test_errors_are_not_cached(two: Case, cache: MemoryResultCache) -> None:
    async with serving(two, 0.5, cache) as server:
        for _ in range(2):
            with pytest.raises(InvalidImage):
                await server.classify(b"no image")


class Fixed(MemoryResultCache):
    """Knows one thing, of whatever is asked."""

    def __init__(self, *outputs: tuple[float, ...]) -> None:
        super().__init__(capacity=1)
        self.known = CachedOutputs(outputs)

    async def get(self, key: str) -> CachedOutputs | None:
        return self.known if key else None


@pytest.mark.parametrize("outputs", [(), ((0.5, 0.5),), ((0.25,) * 4,) * 4], ids=["none", "classes", "stages"])
async def test_what_is_known_of_another_model_is_no_answer(case: Case, outputs: tuple[tuple[float, ...], ...]) -> None:
    async with serving(case, 1.0, Fixed(*outputs)) as server:
        assert_answers(await server.classify(case.images[0].body), case, case.images[0], 1.0)


class Slow(MemoryResultCache):
    """Answers once ``answers`` is set, as one that is far away does."""

    def __init__(self) -> None:
        super().__init__(capacity=10)
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def get(self, key: str) -> CachedOutputs | None:
        self.asked.set()
        await self.answers.wait()
        return await super().get(key)


async def test_engine_that_closes_while_the_cache_is_asked_says_so(two: Case) -> None:
    cache = Slow()
    async with serving(two, 0.5, cache) as server:
        task = server.start(two.images[0].body)
        await cache.asked.wait()
        await in_time(server.engine.close())
        cache.answers.set()
        with pytest.raises(Draining):
            await task
