"""Images that take long to decode wait for the helper process by themselves; the others, and readiness, do not."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
from collections.abc import Iterator

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from service.engine import tuning
from service.engine.answer import Answer
from service.engine.decoding import Aside
from service.engine.entry import Entry
from service.errors import Busy, ImageTooLarge, InvalidImage
from service.images import decode as decode_module
from service.images.decode import is_dear
from service.images.helper import Helper
from service.metrics import Metrics
from tests.engine.serving import TIMEOUT, Case, load, outcomes, serving, until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def dear() -> bytes:
    """A picture of one colour that is large enough to be dear."""
    file = io.BytesIO()
    Image.new("RGB", (5000, 3000), (200, 30, 90)).save(file, "PNG", compress_level=1)
    return file.getvalue()


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Helper]:
    """The process that decodes has all the time of a test."""
    yield from helper_of(TIMEOUT, monkeypatch)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Helper]:
    yield from helper_of(0.3, monkeypatch)


def helper_of(deadline: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[Helper]:
    helper = Helper(deadline)
    monkeypatch.setattr(decode_module, "HELPER", helper)
    yield helper
    helper.close()


async def stopped(helper: Helper, case: Case) -> int:
    """The process, which decodes nothing until it is told to go on."""
    small = case.images[0].body
    await asyncio.to_thread(helper.pixels, small, load(case).spec.preprocessing)
    assert helper.process_id is not None
    os.kill(helper.process_id, signal.SIGSTOP)
    return helper.process_id


async def test_others_are_answered_while_one_is_decoded(two: Case, dear: bytes, helper: Helper) -> None:
    assert is_dear(dear, load(two).spec.preprocessing)
    process = await stopped(helper, two)
    async with serving(two, workers=1) as server:
        slow = server.start(dear)
        await until(lambda: helper.is_busy)
        assert all(isinstance(answer, Answer) for answer in await outcomes(map(server.start, bodies(two))))
        assert not slow.done()
        os.kill(process, signal.SIGCONT)
        assert isinstance((await outcomes([slow]))[0], Answer)
        await server.all_slots_free()


def bodies(case: Case) -> list[bytes]:
    return [image.body for image in case.images]


@pytest.mark.parametrize("decode_threads", [0, 1])
async def test_one_that_takes_too_long_is_refused_alone_and_counted(
    two: Case, dear: bytes, hasty: Helper, decode_threads: int
) -> None:
    await stopped(hasty, two)
    async with serving(two, workers=1, decode_threads=decode_threads) as server:
        slow, *others = await outcomes(map(server.start, [dear, *bodies(two)]))
        assert isinstance(slow, ImageTooLarge)
        assert slow.status == 413
        assert all(isinstance(answer, Answer) for answer in others)
        assert server.count("decoders_ended_total", reason="slow") == 1
        assert server.engine.why_not_ready() is None
        await server.all_slots_free()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that decode have no time at all, and no kind of pictures is distrusted yet."""
    monkeypatch.setattr(decode_module, "LATE_SECONDS", 0.0)
    monkeypatch.setattr(decode_module, "_distrusted", {})


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("decode_threads", [0, 1])
async def test_one_that_takes_a_thread_too_long_is_refused_and_the_next_of_its_kind_decoded_elsewhere(
    two: Case, helper: Helper, decode_threads: int
) -> None:
    small, other = bodies(two)[:2]
    assert not is_dear(small, load(two).spec.preprocessing)
    async with serving(two, workers=1, decode_threads=decode_threads) as server:
        late, *_ = await outcomes([server.start(small)])
        assert isinstance(late, ImageTooLarge)
        assert late.status == 413
        assert server.count("decoders_ended_total", reason="late") == 1
        assert is_dear(other, load(two).spec.preprocessing)
        assert isinstance((await outcomes([server.start(other)]))[0], Answer)
        assert helper.process_id is not None
        await server.all_slots_free()


async def test_one_that_crashes_its_decoder_is_refused_alone_and_counted(
    two: Case, dear: bytes, helper: Helper
) -> None:
    process = await stopped(helper, two)
    async with serving(two, workers=1) as server:
        crashing = server.start(dear)
        await until(lambda: helper.is_busy)
        os.kill(process, signal.SIGKILL)
        assert isinstance((await outcomes([crashing]))[0], InvalidImage)
        assert server.count("decoders_ended_total", reason="crashed") == 1
        assert isinstance((await outcomes([server.start(dear)]))[0], Answer)


async def test_one_that_is_decoded_when_the_engine_closes_is_answered(two: Case, dear: bytes, helper: Helper) -> None:
    process = await stopped(helper, two)
    async with serving(two, workers=1) as server:
        slow = server.start(dear)
        await until(lambda: helper.is_busy)
        closing = asyncio.create_task(server.engine.close())
        await asyncio.sleep(0)
        os.kill(process, signal.SIGCONT)
        assert isinstance((await outcomes([slow]))[0], Answer)
        await closing


async def test_one_whose_turn_does_not_come_is_told_so(two: Case, dear: bytes) -> None:
    loop = asyncio.get_running_loop()
    entry = Entry(1.0, 1, 1, time.monotonic(), None, loop, loop.create_future(), body=dear)
    pushed: list[Entry] = []
    aside = Aside(load(two).spec, Metrics(CollectorRegistry()), pushed.extend, patience=-1)
    assert aside.take(entry)
    with pytest.raises(Busy, match="slow images are waiting"):
        await entry.answered()
    aside.close()
    assert not pushed
    assert not aside.take(entry)


async def test_readiness_falls_while_no_worker_finishes_a_batch(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "STALL_SECONDS", 0.0)
    async with serving(case, workers=2) as server:
        gate = server.gate(0)
        tasks = [server.start(case.images[0].body)]
        await gate.arrival()
        assert server.engine.why_not_ready() is None  # the other waits for work
        tasks.append(server.start(case.images[1].body))
        await gate.arrival()
        assert "no worker has finished a batch" in str(server.engine.why_not_ready())
        gate.open()
        await outcomes(tasks)
        await server.ready()
