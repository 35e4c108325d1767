"""``POST /feedback``: truths are logged, counted once for each image, and what cannot be one is named."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.samples.reading import SavedLog

pytestmark = pytest.mark.anyio

Connect = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]
ErrorOf = Callable[[httpx.Response, int, str], dict[str, Any]]
RAW = {"Content-Type": "image/jpeg"}


@pytest.fixture
async def logged(
    make_app: Callable[..., FastAPI], connect: Connect, tmp_path: Path, jpeg: bytes
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app that logs, and has answered the request ``one``."""
    async with connect(make_app(sample_log=str(tmp_path))) as client:
        answer = await client.post("/classify", content=jpeg, headers={**RAW, "X-Request-ID": "one"})
        assert answer.status_code == 200
        yield client


async def counts(client: httpx.AsyncClient) -> tuple[int, int]:
    """Answers whose truth was told; of these, the right ones."""
    lines = (await client.get("/metrics")).text.splitlines()
    found = {
        line.partition("{")[0]: int(float(line.rpartition(" ")[2]))
        for line in lines
        if line.startswith("lowfirst_feedback")
    }
    return found["lowfirst_feedback_total"], found["lowfirst_feedback_right_total"]


async def feedback(client: httpx.AsyncClient) -> dict[str, Any] | None:
    """Of ``/stats``."""
    told: dict[str, Any] | None = (await client.get("/stats")).json()["feedback"]
    return told


async def test_stats_tell_of_feedback_where_it_is_taken(logged: httpx.AsyncClient, client: httpx.AsyncClient) -> None:
    nothing = {"images": 0, "right": 0, "accuracy": None, "accuracy_interval": None}
    assert await feedback(logged) == {**nothing, "by_exit": {"low": nothing, "high": nothing}}
    assert await feedback(client) is None


async def test_a_truth_is_told_by_name_or_index_and_the_last_word_counts(
    logged: httpx.AsyncClient, tmp_path: Path, jpeg: bytes
) -> None:
    answered = (await logged.post("/classify", content=jpeg, headers=RAW)).json()
    id_ = answered["request_id"]
    other = next(name for name in ("ant", "bee") if name != answered["label"])
    right = await logged.post("/feedback", json={"request_id": id_, "label": answered["label"]})
    assert right.json() == {
        "model": "tiny/1", "label": answered["label"], "answered": answered["label"], "right": True,
    }  # fmt: skip
    wrong = await logged.post("/feedback", json={"request_id": id_, "label": ["ant", "bee"].index(other)})
    assert (wrong.json()["label"], wrong.json()["right"]) == (other, False)
    assert await counts(logged) == (1, 1)  # once for an image
    assert (told := await feedback(logged)) is not None
    assert (told["images"], told["right"], told["accuracy"]) == (1, 0, 0.0)
    assert told["accuracy_interval"] == pytest.approx([0, 0.975])  # of one image
    assert {name: each["images"] for name, each in told["by_exit"].items()} == {
        "low": int(answered["exit"] == "low"), "high": int(answered["exit"] == "high"),
    }  # fmt: skip
    app = logged._transport.app  # type: ignore[attr-defined]
    app.state.parts.samples.close()
    saved = SavedLog(str(tmp_path))
    (truth,) = saved.truths().values()
    assert (truth.request_id, truth.label) == (id_, other)
    assert {sample.request_id for sample in saved.samples()} == {"one", id_}


async def test_an_image_of_several_is_named_by_its_index(logged: httpx.AsyncClient, jpeg: bytes) -> None:
    images = [("image", (None, jpeg))] * 3
    batch = await logged.post("/classify/batch", files=images, headers={"X-Request-ID": "many"})
    label = batch.json()["results"][2]["label"]
    told = await logged.post("/feedback", json={"request_id": "many", "label": label, "index": 2})
    assert told.json()["right"] is True
    unknown = await logged.post("/feedback", json={"request_id": "many", "label": label, "index": 3})
    assert unknown.status_code == 404


async def test_an_unknown_request_is_a_404_that_says_what_is_known(
    logged: httpx.AsyncClient, error_of: ErrorOf
) -> None:
    error = error_of(await logged.post("/feedback", json={"request_id": "two", "label": "ant"}), 404, "not_found")
    assert (error["field"], error["value"], error["bound"]) == ("request_id", "two", 65536)
    assert "not among the latest 65536 images" in error["message"]


@pytest.mark.parametrize("label", ["cow", 4, -1])
async def test_an_unknown_label_is_a_422_that_names_the_classes(
    logged: httpx.AsyncClient, error_of: ErrorOf, label: str | int
) -> None:
    error = error_of(await logged.post("/feedback", json={"request_id": "one", "label": label}), 422, "invalid_field")
    assert (error["field"], error["value"]) == ("label", label)
    assert "tiny/1" in error["message"]
    assert await counts(logged) == (0, 0)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"request_id": "one"},
        {"label": "ant"},
        {"request_id": "", "label": "ant"},
        {"request_id": "one", "label": None},
        {"request_id": "one", "label": True},
        {"request_id": "one", "label": 1.0},
        {"request_id": "one", "label": "ant", "index": -1},
        {"request_id": "one", "label": "ant", "more": 1},
        {"request_id": "x" * 129, "label": "ant"},
        {"request_id": 1, "label": "ant"},
    ],
)
async def test_a_body_of_another_shape_is_a_422(
    logged: httpx.AsyncClient, error_of: ErrorOf, body: dict[str, Any]
) -> None:
    error_of(await logged.post("/feedback", json=body), 422, "invalid_field")


@pytest.mark.parametrize("label", [None, True, 1.5, ["ant"], "x" * 300])
async def test_what_is_neither_name_nor_index_is_told_so(
    logged: httpx.AsyncClient, error_of: ErrorOf, label: object
) -> None:
    body = {"request_id": "one", "label": label}
    error = error_of(await logged.post("/feedback", json=body), 422, "invalid_field")
    assert error["field"] == "label"
    assert error["bound"] == "a class by its name, of 256 characters at most, or by its index"


async def test_only_json_of_a_few_bytes_is_read(logged: httpx.AsyncClient, error_of: ErrorOf) -> None:
    error_of(await logged.post("/feedback", content=b"a=b"), 415, "unsupported_body")
    huge = {"request_id": "one", "label": "x" * 9000}
    error_of(await logged.post("/feedback", json=huge), 413, "image_too_large")


async def test_without_a_log_nothing_is_known(client: httpx.AsyncClient, error_of: ErrorOf) -> None:
    error = error_of(await client.post("/feedback", json={"request_id": "one", "label": "ant"}), 404, "not_found")
    assert "LOWFIRST_SAMPLE_LOG is unset" in error["message"]
