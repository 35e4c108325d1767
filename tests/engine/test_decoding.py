"""Images are decoded in threads of their own, or in the worker that runs them; neither holds up the others."""

from __future__ import annotations

import asyncio
import threading

import pytest
from torch import Tensor

from service.engine import decoding, tuning
from service.engine.answer import Answer
from service.errors import DeviceFailed, InvalidImage, UnsupportedImage
from service.images.decode import decode
from service.images.transforms import Preprocessing
from tests.engine.serving import TIMEOUT, Case, assert_answers, leave, outcomes, serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("decode_threads", [0, 2])
async def test_image_that_cannot_be_decoded_is_in_no_batch(case: Case, decode_threads: int) -> None:
    async with serving(case, 1.0, decode_threads=decode_threads) as server:
        gate = server.gate(0)
        images = case.images
        broken = server.start(b"\xff\xd8\xff and no more")
        assert isinstance((await outcomes([broken]))[0], InvalidImage)
        bodies = [images[0].body, b"\xff\xd8\xff and no more", images[1].body]
        tasks = [server.start(body) for body in bodies]
        gate.open()
        first, bad, second = await outcomes(tasks)
        assert isinstance(bad, InvalidImage)
        for answer, image in ((first, images[0]), (second, images[1])):
            assert_answers(answer, case, image, 1.0)
        assert sum(gate.sizes) == 2
        assert server.count("decode_seconds_count") == 2
        await server.all_slots_free()


async def test_batch_of_nothing_but_broken_images_is_told_and_gives_its_slots_back(two: Case) -> None:
    async with serving(two, feature_slots=2) as server:
        told = await outcomes([server.start(b"no image") for _ in range(6)])
        assert [type(error) for error in told] == [UnsupportedImage] * 6
        await server.all_slots_free()
        assert server.engine.why_not_ready() is None


async def test_images_not_decoded_in_time_wait_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "DECODE_SECONDS", 0.0)
    async with serving(case, 1.0) as server:
        gate = server.gate(0)
        tasks = await server.behind(gate, [image.body for image in case.images[:4]])
        gate.open()
        for answer, image in zip(await outcomes(tasks), case.images, strict=False):
            assert_answers(answer, case, image, 1.0)
        assert gate.sizes == [1, 1, 1, 1]
        await server.all_slots_free()


async def test_image_of_a_client_that_left_is_not_decoded(two: Case) -> None:
    async with serving(two, decode_threads=1) as server:
        free = threading.Event()
        assert server.engine._ahead is not None
        server.engine._ahead._threads.submit(free.wait, TIMEOUT)
        leaving, staying = server.start(two.images[0].body), server.start(two.images[1].body)
        await asyncio.sleep(0)
        await leave(leaving)
        free.set()
        assert_answers(await staying, two, two.images[1], 0.5)
        assert server.dropped() == {"decode": 1}
        assert server.count("decode_seconds_count") == 1


async def test_image_that_dies_while_its_batch_is_decoded_is_not_computed(
    two: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def wait_at_the_third(data: bytes, preprocessing: Preprocessing, *, waits: bool) -> Tensor:
        if data == two.images[2].body:
            reached.set()
            assert go_on.wait(TIMEOUT)
        return decode(data, preprocessing, waits=waits)

    monkeypatch.setattr(decoding, "decode", wait_at_the_third)
    async with serving(two) as server:
        gate = server.gate(0)
        first, leaving, staying = await server.behind(gate, [image.body for image in two.images[:3]])
        gate.open()
        assert await asyncio.to_thread(reached.wait, TIMEOUT)
        await leave(leaving)
        go_on.set()
        await outcomes([first, staying])
        assert gate.sizes == [1, 1]
        assert server.dropped() == {"low": 1}
        await server.all_slots_free()


async def test_decoder_that_breaks_is_our_fault_and_costs_its_image_alone(
    two: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(data: bytes, preprocessing: Preprocessing, *, waits: bool) -> Tensor:
        if data == two.images[0].body:
            raise MemoryError
        return decode(data, preprocessing, waits=waits)

    monkeypatch.setattr(decoding, "decode", break_down)
    async with serving(two) as server:
        broken, answer = await outcomes([server.start(two.images[0].body), server.start(two.images[1].body)])
        assert isinstance(broken, DeviceFailed)
        assert_answers(answer, two, two.images[1], 0.5)
        assert server.engine.why_not_ready() is None


async def test_decoded_images_that_wait_are_bounded(two: Case) -> None:
    async with serving(two, 0.0, max_batch_size=1, decode_threads=2) as server:
        gate = server.gate(0)
        tasks = [server.start(image.body) for image in two.images]
        depths = []
        for _ in two.images:
            await gate.arrival()
            depths.append(server.engine.backlog.depths()["low"])
            gate.let_one_through()
        assert all(isinstance(answer, Answer) for answer in await outcomes(tasks))
        assert max(depths) <= tuning.DECODED_AHEAD + 2 - 1
