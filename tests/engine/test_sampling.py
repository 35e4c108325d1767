"""What an engine logs of its images: each has all stages that it was drawn to have, however it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from service.samples.files import Bounds
from service.samples.log import Options, SampleLog
from service.samples.reading import SavedLog
from service.samples.record import Sample
from service.state.memory import MemoryResultCache
from tests.engine.serving import WHITE, Case, Server, leave, outcomes, refusing_white_at, serving, until

pytestmark = pytest.mark.anyio

LARGE = Bounds(1 << 20, 1 << 22)


@contextmanager
def logging_to(folder: Path, share: float = 1.0) -> Iterator[SampleLog]:
    """A log that writes until the block ends."""
    log = SampleLog(Options(str(folder), "jsonl", LARGE, share))
    log.start()
    try:
        yield log
    finally:
        log.close()


def saved(folder: Path) -> dict[int, Sample]:
    """What was logged, by the image's place."""
    return {sample.index: sample for sample in SavedLog(str(folder)).samples()}


async def send_all(server: Server) -> None:
    """Each image of the case, one after another, each with its audit before the next."""
    for index, image in enumerate(server.case.images):
        await server.classify(image.body, request_id="r", index=index)
        await server.all_slots_free()


async def test_every_stage_is_logged_of_each_image_that_was_drawn(case: Case, tmp_path: Path) -> None:
    with logging_to(tmp_path) as log:
        async with serving(case, case.middle, samples=log) as server:
            await send_all(server)
    found = saved(tmp_path)
    assert len(found) == len(case.images)
    for index, image in enumerate(case.images):
        sample = found[index]
        assert (sample.drawn, sample.is_complete) == (True, True)
        for said, expected in zip(sample.outputs, image.outputs, strict=True):
            np.testing.assert_allclose(said, expected.numpy(), rtol=1e-3, atol=1e-5)
        assert (sample.stage, sample.exit) == (image.end(case.middle), case.names[image.end(case.middle)])
        assert sample.answer == int(image.outputs[sample.stage].argmax())
        assert (sample.request_id, sample.model, sample.threshold) == ("r", "tiny/1", case.middle)
        assert (sample.image_bytes, sample.image) == (len(image.body), None)


async def test_an_image_is_drawn_only_where_its_audit_has_room_and_then_has_every_stage(
    cascade: Case, tmp_path: Path
) -> None:
    with logging_to(tmp_path) as log:
        async with serving(cascade, 0.0, samples=log, feature_slots=32) as server:  # room for four audits
            gate = server.gate(0)
            tasks = [server.start(cascade.images[0].body, request_id="r", index=0)]
            await gate.arrival()
            tasks += [server.start(cascade.images[i % 8].body, request_id="r", index=i) for i in range(1, 12)]
            await server.waiting(0, 11)
            gate.open()
            await outcomes(tasks)
            await server.all_slots_free()
    found = saved(tmp_path)
    drawn = {index for index, sample in found.items() if sample.drawn}
    assert drawn == {0, 1, 2, 3}
    assert {index for index, sample in found.items() if sample.is_complete} == drawn


async def test_room_kept_for_an_audit_is_given_back_by_whom_needs_none(cascade: Case, tmp_path: Path) -> None:
    with logging_to(tmp_path) as log:
        async with serving(cascade, 1.0, samples=log, feature_slots=8) as server:  # room for one audit
            await send_all(server)
            gate = server.gate(0)
            left = server.start(cascade.images[0].body, request_id="left")
            await gate.arrival()
            await leave(left)
            gate.open()
            await server.classify(cascade.images[1].body, request_id="r", index=100)
    found = saved(tmp_path)
    assert all(sample.drawn and sample.is_complete for sample in found.values())
    assert set(found) == {*range(len(cascade.images)), 100}


async def test_an_image_that_ends_for_want_of_time_has_every_stage_and_counts_as_no_audit(
    two: Case, tmp_path: Path
) -> None:
    with logging_to(tmp_path) as log:
        async with serving(two, 1.0, samples=log) as server:
            gate = server.gate(0)
            task = server.start(two.images[0].body, deadline=1000.0, arrival=time.monotonic())
            await gate.arrival()
            entry = next(iter(server.engine._waiting))
            entry.deadline = time.monotonic()  # the next stage would come too late
            gate.open()
            answer = await task
            await server.all_slots_free()
            assert answer.reason == "deadline"
            assert server.count("audits_total", model="tiny/1") == 0
    (sample,) = saved(tmp_path).values()
    assert (sample.reason, sample.exit, sample.is_complete) == ("deadline", "low", True)


async def test_an_answer_from_the_cache_is_logged_and_not_drawn(two: Case, tmp_path: Path) -> None:
    with logging_to(tmp_path) as log:
        async with serving(two, 0.0, MemoryResultCache(10), samples=log) as server:
            for index in range(2):
                await server.classify(two.images[0].body, index=index)
                await server.all_slots_free()
    found = saved(tmp_path)
    assert [(found[i].reason, found[i].drawn) for i in range(2)] == [("confident", True), ("cached", False)]


async def test_only_the_share_is_logged(two: Case, tmp_path: Path) -> None:
    with logging_to(tmp_path, share=0.5) as log:
        async with serving(two, 1.0, samples=log) as server:
            await asyncio.gather(*(server.classify(two.images[i % 8].body, index=i) for i in range(400)))
    assert 120 < len(saved(tmp_path)) < 280  # 8 standard deviations


async def test_what_finds_no_audit_any_more_when_the_engine_closes_is_logged_as_it_is(
    two: Case, tmp_path: Path
) -> None:
    with logging_to(tmp_path) as log:
        async with serving(two, 0.0, samples=log) as server:
            gate = server.gate(1)
            await server.classify(two.images[0].body, index=0)
            await gate.arrival()  # its audit
            behind = server.start(two.images[1].body, index=1)
            await server.waiting(0, 1)
            closing = asyncio.ensure_future(server.engine.close())
            await until(lambda: server.engine._lanes._closed)
            gate.open()
            await closing
            await behind
    found = saved(tmp_path)
    assert [(found[i].drawn, found[i].is_complete) for i in range(2)] == [(True, True), (True, False)]


async def test_an_image_whose_audit_fails_is_logged_as_it_is(cascade: Case, tmp_path: Path) -> None:
    with logging_to(tmp_path) as log:
        async with serving(cascade, 0.0, samples=log) as server:
            server.predictor.before = refusing_white_at(cascade.last)
            await server.classify(WHITE)
            await until(lambda: not server.engine._sampling._unfinished)  # type: ignore[union-attr]
            await server.all_slots_free()
    (sample,) = saved(tmp_path).values()
    assert (sample.drawn, sample.is_complete) == (True, False)
