"""Images that run behind an answer: decided as for a client, counted as an audit, out of the clients' way."""

from __future__ import annotations

import asyncio

import pytest

from service.engine.behind import Behind
from service.engine.comparison import Reply
from service.errors import DeviceFailed, Draining, InvalidImage
from tests.engine.serving import WHITE, Case, outcomes, refusing_white_at, serving, until

pytestmark = pytest.mark.anyio


async def test_it_ends_where_it_would_for_a_client(case: Case) -> None:
    async with serving(case, feature_slots=len(case.images) * 8) as server:
        bodies = [image.body for image in case.images]
        seen = await asyncio.gather(*(server.engine.behind.run(body, case.middle) for body in bodies))
        for image, each in zip(case.images, seen, strict=True):
            end = min(image.end(case.middle), case.last)
            assert isinstance(each, Reply)
            assert each.label == server.engine.spec.classes[int(image.outputs[end].argmax())]
            assert each.exited == (end < case.last)
            assert each.mmacs == pytest.approx(sum(case.mmacs[: end + 1]))
            assert (each.seconds or 0) > 0
        behind = server.engine.behind
        assert behind.computed == len(bodies)
        assert behind.compute > 0
        assert sum(server.answered(stage, "confident") for stage in range(case.depth)) == 0
        assert server.count("multiply_adds_total", model="tiny/1", stage="audit") > 0
        await server.all_slots_free()


async def test_clients_come_first(two: Case) -> None:
    body = two.images[0].body
    async with serving(two, max_batch_size=1) as server:
        gate = server.gate(0)
        first = server.start(body)
        await gate.arrival()
        behind = asyncio.create_task(server.engine.behind.run(body, 0.0))
        second = server.start(body)
        await server.waiting(0, 1)
        gate.let_one_through()
        await gate.arrival()  # the client's
        assert not behind.done()
        gate.open()
        await outcomes([first, second])
        assert await behind is not None


async def test_it_waits_for_another_models_clients_too(two: Case) -> None:
    body = two.images[0].body
    async with serving(two) as served, serving(two) as tried:
        tried.engine.behind.begin(served.engine.behind)
        gate = served.gate(0)
        client = served.start(body)
        await gate.arrival()
        behind = asyncio.create_task(tried.engine.behind.run(body, 0.0))
        assert await until_looked_at(tried.engine.behind, 20)
        assert not behind.done()
        gate.open()
        await client
        assert await behind is not None
        tried.engine.behind.end()


async def until_looked_at(behind: Behind, times: int) -> bool:
    """Whether the worker looked so often for what it may do, and found nothing."""
    neighbour = behind._lanes.audits.neighbour
    assert neighbour is not None
    looks = 0

    def is_busy() -> bool:
        nonlocal looks
        looks += 1
        return neighbour.is_busy()

    behind._lanes.audits.neighbour = type(neighbour)(is_busy, neighbour.spent)
    await until(lambda: looks > times)
    return True


async def test_what_finds_no_room_is_left_out(two: Case) -> None:
    async with serving(two, feature_slots=16) as server:  # room for two
        gate = server.gate(0)
        running = [asyncio.create_task(server.engine.behind.run(image.body, 0.0)) for image in two.images[:2]]
        await gate.arrival()
        assert await server.engine.behind.run(two.images[2].body, 0.0) is None
        gate.open()
        assert None not in await asyncio.gather(*running)


async def test_what_escalates_behind_an_answer_is_never_left_out(cascade: Case) -> None:
    async with serving(cascade, feature_slots=8) as server:  # room for one, and an audit's is taken by it
        seen = await server.engine.behind.run(cascade.images[0].body, 1.0)
        assert seen is not None
        assert not seen.exited
        assert server.count("audits_skipped_total") == 0


async def test_an_image_that_fails_fails_alone(two: Case) -> None:
    async with serving(two, feature_slots=64) as server:
        server.predictor.before = refusing_white_at(0)
        bodies = [WHITE, two.images[0].body, b"no image"]
        failed, seen, unreadable = await asyncio.gather(
            *(server.engine.behind.run(body, 0.0) for body in bodies), return_exceptions=True
        )
        assert isinstance(failed, DeviceFailed)
        assert isinstance(seen, Reply)
        assert isinstance(unreadable, InvalidImage)
        await server.all_slots_free()


async def test_an_engine_that_stops_gives_it_up(two: Case) -> None:
    async with serving(two, max_batch_size=1, feature_slots=64) as server:
        gate = server.gate(0)
        running = [asyncio.create_task(server.engine.behind.run(image.body, 0.0)) for image in two.images[:3]]
        await gate.arrival()
        closing = asyncio.create_task(server.engine.close())
        await until(lambda: server.engine._lanes._closed)
        gate.open()
        await closing
        outcome = await asyncio.gather(*running, return_exceptions=True)
        assert [type(each) for each in outcome].count(Draining) >= 2
