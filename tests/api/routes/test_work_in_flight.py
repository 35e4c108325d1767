"""What takes room in the server, and for how long: bodies as they come, images once they are whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from service.errors import Busy

pytestmark = pytest.mark.anyio

RAW = {"Content-Type": "image/jpeg"}


class Upload:
    """A body of two halves: the second is sent when the test says ``go``."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.begun = asyncio.Event()
        self.go = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """What the server reads."""
        yield self.data[:100]
        self.begun.set()
        await self.go.wait()
        yield self.data[100:]


async def unread() -> AsyncIterator[bytes]:
    """A body that must not be asked for."""
    pytest.fail("the body was read")
    yield b""


@pytest.mark.parametrize("limit", [{"max_images_in_flight": 1}, {"max_bytes_in_flight": 1}])
async def test_a_full_server_turns_away_before_it_reads_the_body(
    make_app: Callable[..., FastAPI],
    connect: Callable[..., Any],
    jpeg: bytes,
    error_of: Callable[..., dict[str, Any]],
    limit: dict[str, int],
) -> None:
    app = make_app(**limit)
    async with connect(app) as client:
        with app.state.parts.admission.admit(images=1, size=len(jpeg)):
            for path in ("/classify", "/classify/batch"):
                response = await client.post(path, content=unread(), headers=RAW)
                error = error_of(response, 429, "busy")
                assert (error["field"], error["bound"]) == (next(iter(limit)).removeprefix("max_"), 1)
                assert int(response.headers["Retry-After"]) >= 1
        reason = error["field"].removesuffix("_in_flight")
        assert f'lowfirst_rejected_total{{reason="{reason}"}} 2.0' in (await client.get("/metrics")).text
        assert (await client.post("/classify", content=jpeg, headers=RAW)).status_code == 200


async def test_a_deadline_that_cannot_be_met_is_told_before_the_body_is_read(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], error_of: Callable[..., dict[str, Any]]
) -> None:
    async with connect(make_app()) as client:
        response = await client.post("/classify?deadline_ms=0.0001", content=unread(), headers=RAW)
        assert error_of(response, 504, "deadline_passed")["field"] == "deadline_ms"
        told = (await client.get("/metrics")).text
        assert 'lowfirst_image_errors_total{code="deadline_passed"} 1.0' in told
        assert 'lowfirst_dropped_total{point="deadline"} 1.0' in told


async def test_a_batch_takes_a_place_for_each_image(
    make_app: Callable[..., FastAPI],
    connect: Callable[..., Any],
    jpeg: bytes,
    error_of: Callable[..., dict[str, Any]],
) -> None:
    app = make_app(max_images_in_flight=4)
    async with connect(app) as client:
        batch = [("image", (None, jpeg))]
        with app.state.parts.admission.admit(images=1):
            assert (await client.post("/classify/batch", files=batch * 2)).status_code == 200
            error_of(await client.post("/classify/batch", files=batch * 3), 429, "busy")  # it would take the last
            assert 'lowfirst_rejected_total{reason="images"} 3.0' in (await client.get("/metrics")).text
        assert (await client.post("/classify/batch", files=batch * 4)).status_code == 200


async def test_batches_leave_places_to_single_images(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    app = make_app(max_images_in_flight=16, max_batch_images=4)
    async with connect(app) as client, contextlib.AsyncExitStack() as held:
        with contextlib.suppress(Busy):
            while True:  # as many batches as get in stay
                held.enter_context(app.state.parts.admission.admit(images=4, size=4 * len(jpeg)))
        assert app.state.parts.admission.images == 12
        batch = [("image", (None, jpeg))] * 4
        assert (await client.post("/classify/batch", files=batch)).status_code == 429
        for _ in range(10):
            assert (await client.post("/classify", content=jpeg, headers=RAW)).status_code == 200


async def test_bodies_that_do_not_come_take_no_places(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    async with connect(make_app(max_images_in_flight=4, max_bytes_in_flight=2 * len(jpeg))) as client:
        uploads = [Upload(jpeg) for _ in range(12)]
        announced = {**RAW, "Content-Length": str(len(jpeg))}
        waiting = [
            asyncio.create_task(client.post(path, content=upload, headers=headers))
            for upload, (path, headers) in zip(
                uploads, [("/classify", announced), ("/classify", RAW), ("/v2/models/tiny/infer", RAW)] * 4, strict=True
            )
        ]
        for upload in uploads:
            await upload.begun.wait()
        queue = (await client.get("/stats")).json()["queue"]
        assert (queue["images_in_flight"], queue["bytes_in_flight"]) == (0, 12 * len(jpeg[:100]))
        for _ in range(4):
            assert (await client.post("/classify", content=jpeg, headers=RAW)).status_code == 200
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (await client.get("/stats")).json()["queue"]["bytes_in_flight"] == 0


async def test_many_small_uploads_at_once_are_all_answered(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    async with connect(make_app(max_bytes_in_flight=32 * 1024 * 1024)) as client:  # two bodies of the largest size
        uploads = [Upload(jpeg) for _ in range(40)]
        waiting = [asyncio.create_task(client.post("/classify", content=upload, headers=RAW)) for upload in uploads]
        for upload in uploads:
            await upload.begun.wait()
        for upload in uploads:
            upload.go.set()
        assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * 40


async def test_an_upload_that_stalls_makes_room_for_a_body_that_is_here(
    make_app: Callable[..., FastAPI],
    connect: Callable[..., Any],
    jpeg: bytes,
    error_of: Callable[..., dict[str, Any]],
) -> None:
    async with connect(make_app(max_bytes_in_flight=len(jpeg) + 50)) as client:
        upload = Upload(jpeg)
        stalled = asyncio.create_task(client.post("/classify", content=upload, headers=RAW))
        await upload.begun.wait()
        assert (await client.post("/classify", content=jpeg, headers=RAW)).status_code == 200
        assert error_of(await stalled, 429, "busy")["field"] == "bytes_in_flight"
        queue = (await client.get("/stats")).json()["queue"]
        assert (queue["images_in_flight"], queue["bytes_in_flight"]) == (0, 0)


@pytest.mark.parametrize("announced", [{"Content-Length": str(100 * 1024 * 1024)}, {}])
async def test_a_body_beyond_the_limit_is_refused_as_soon_as_that_is_known(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]], announced: dict[str, str]
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1024 * 1024
            yield bytes(1024 * 1024)

    response = await client.post("/classify", content=endless(), headers={**RAW, **announced})
    error = error_of(response, 413, "image_too_large")
    assert (error["field"], error["bound"]) == ("body", 16 * 1024 * 1024)
    assert sent <= (0 if announced else 17 * 1024 * 1024)


@pytest.mark.parametrize("complete", [False, True])
async def test_a_client_that_leaves_frees_its_place(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes, complete: bool
) -> None:
    app = make_app(max_images_in_flight=1)
    messages: list[Message] = [
        {"type": "http.request", "body": jpeg, "more_body": not complete},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        """Nobody reads it."""

    scope = {"type": "http", "method": "POST", "path": "/classify", "query_string": b"", "headers": [
        (b"content-type", b"image/jpeg")
    ]}  # fmt: skip
    async with connect(app) as client:
        await app(scope, receive, send)
        assert 'lowfirst_requests_total{code="499",route="/classify"} 1.0' in (await client.get("/metrics")).text
        queue = (await client.get("/stats")).json()["queue"]
        assert (queue["images_in_flight"], queue["bytes_in_flight"]) == (0, 0)
        assert (await client.post("/classify", content=jpeg, headers=RAW)).status_code == 200


async def test_a_request_that_is_cancelled_frees_its_place(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    async with connect(make_app(max_bytes_in_flight=len(jpeg))) as client:
        upload = Upload(jpeg)
        request = asyncio.create_task(client.post("/classify", content=upload, headers=RAW))
        await upload.begun.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert (await client.post("/classify", content=jpeg, headers=RAW)).status_code == 200
