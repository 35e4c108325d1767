"""``POST /classify`` and ``POST /classify/batch``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

pytestmark = pytest.mark.anyio

RAW = {"Content-Type": "image/jpeg"}
FORMS = ("raw", "octets", "file", "field", "json")


async def unread() -> AsyncIterator[bytes]:
    """A body that must not be asked for."""
    pytest.fail("the body was read")
    yield b""


def without_chance(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, less what differs from request to request."""
    return {name: value for name, value in answer.items() if name not in ("request_id", "timing_ms")}


async def test_an_answer_has_every_promised_field(client: httpx.AsyncClient, jpeg: bytes) -> None:
    answer = (await client.post("/classify", content=jpeg, headers=RAW)).json()
    assert set(answer) >= {
        "label", "score", "top_k", "exit", "reason", "confidence", "threshold", "mmacs", "degraded", "cached",
        "model", "config_version", "request_id", "timing_ms",
    }  # fmt: skip
    assert answer["model"] == {"name": "tiny", "version": 1}
    assert set(answer["timing_ms"]) == {"decode", "queue", "low", "high", "total"}
    assert set(answer["top_k"][0]) == {"label", "index", "score"}
    assert (answer["top_k"][0]["label"], answer["top_k"][0]["score"]) == (answer["label"], answer["score"])
    assert sum(ranked["score"] for ranked in answer["top_k"]) == pytest.approx(1)
    assert not answer["degraded"]
    assert not answer["cached"]


async def test_timing_is_told_in_a_header_too(client: httpx.AsyncClient, jpeg: bytes) -> None:
    response = await client.post("/classify?threshold=1", content=jpeg, headers=RAW)
    told = [entry.split(";dur=") for entry in response.headers["Server-Timing"].split(", ")]
    assert [name for name, _ in told] == ["decode", "queue", "low", "high", "total"]
    timing = response.json()["timing_ms"]
    assert {name: float(spent) for name, spent in told} == pytest.approx(timing, abs=0.0051)
    assert all(timing[name] > 0 for name in ("decode", "low", "high"))
    assert sum(timing[name] for name in ("decode", "queue", "low", "high")) <= timing["total"]


async def test_pass_that_did_not_run_took_no_time(client: httpx.AsyncClient, jpeg: bytes) -> None:
    response = await client.post("/classify?threshold=0", content=jpeg, headers=RAW)
    assert response.json()["timing_ms"]["high"] == 0
    assert "high;dur=0.00" in response.headers["Server-Timing"]


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_of_body_gets_the_same_answer(
    client: httpx.AsyncClient, forms: dict[str, dict[str, Any]], form: str
) -> None:
    expected = (await client.post("/classify", **forms["raw"])).json()
    response = await client.post("/classify", **forms[form])
    assert response.status_code == 200
    assert without_chance(response.json()) == without_chance(expected)


@pytest.mark.parametrize("query", ["", "?top_k=4", "?top_k=5", "?top_k=1000000"])
async def test_of_more_labels_than_the_model_has_all_are_given(
    client: httpx.AsyncClient, jpeg: bytes, query: str
) -> None:
    answer = (await client.post("/classify" + query, content=jpeg, headers=RAW)).json()
    assert sorted(ranked["label"] for ranked in answer["top_k"]) == ["ant", "bee", "cat", "dog"]


async def test_top_k_says_how_many_labels(client: httpx.AsyncClient, jpeg: bytes) -> None:
    answer = (await client.post("/classify?top_k=2", content=jpeg, headers=RAW)).json()
    assert len(answer["top_k"]) == 2
    assert answer["top_k"][0]["score"] >= answer["top_k"][1]["score"]


async def test_passes_tell_what_each_pass_that_ran_says(client: httpx.AsyncClient, jpeg: bytes) -> None:
    exited = (await client.post("/classify?threshold=0&passes=true", content=jpeg, headers=RAW)).json()
    escalated = (await client.post("/classify?threshold=1&passes=true", content=jpeg, headers=RAW)).json()
    assert exited["passes"] == {"low": exited["top_k"], "high": None}
    assert escalated["passes"] == {"low": exited["top_k"], "high": escalated["top_k"]}
    assert escalated["passes"]["low"] != escalated["passes"]["high"]
    assert (await client.post("/classify", content=jpeg, headers=RAW)).json()["passes"] is None


async def test_cached_answer_tells_its_passes(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    async with connect(make_app(cache_entries=4)) as client:
        computed, cached = [
            (await client.post("/classify?threshold=1&passes=true", content=jpeg, headers=RAW)).json() for _ in range(2)
        ]
    assert cached["cached"]
    assert cached["passes"] == computed["passes"]


async def test_an_exit_costs_the_low_pass_and_an_escalation_both(client: httpx.AsyncClient, jpeg: bytes) -> None:
    model = (await client.get("/models")).json()["models"][0]
    low = (await client.post("/classify?threshold=0", content=jpeg, headers=RAW)).json()
    high = (await client.post("/classify?threshold=1", content=jpeg, headers=RAW)).json()
    assert (low["exit"], low["reason"], low["mmacs"]) == ("low", "confident", model["low_mmacs"])
    assert (high["exit"], high["reason"]) == ("high", "escalated")
    assert high["mmacs"] == pytest.approx(model["low_mmacs"] + model["high_mmacs"])


async def test_a_threshold_of_one_request_changes_no_config(client: httpx.AsyncClient, jpeg: bytes) -> None:
    before = (await client.get("/config")).json()
    answer = (await client.post("/classify?threshold=0.123", content=jpeg, headers=RAW)).json()
    assert answer["threshold"] == 0.123
    assert (await client.get("/config")).json() == before


async def test_a_deadline_already_past_is_told(
    client: httpx.AsyncClient, jpeg: bytes, error_of: Callable[..., dict[str, Any]]
) -> None:
    response = await client.post("/classify?deadline_ms=0.0001", content=jpeg, headers=RAW)
    while response.status_code == 200:  # an answer that exists by then is given
        response = await client.post("/classify?deadline_ms=0.0001", content=jpeg, headers=RAW)
    assert error_of(response, 504, "deadline_passed")["field"] == "deadline_ms"


async def test_the_deadline_of_the_settings_holds_for_requests_without_one(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    async with connect(make_app(deadline_ms=0.0001)) as client:
        while (await client.post("/classify", content=jpeg, headers=RAW)).status_code != 504:
            pass  # an answer that exists by then is given
        assert (await client.post("/classify?deadline_ms=60000", content=jpeg, headers=RAW)).status_code == 200


@pytest.mark.parametrize(
    ("query", "field", "value", "bound"),
    [
        ("top_k=0", "top_k", "0", 1),
        ("top_k=two", "top_k", "two", None),
        ("threshold=1.01", "threshold", "1.01", 1),
        ("threshold=-0.5", "threshold", "-0.5", 0),
        ("threshold=nan", "threshold", "nan", None),
        ("deadline_ms=0", "deadline_ms", "0", 0),
        ("deadline_ms=1e9", "deadline_ms", "1e9", 3_600_000),
        ("deadline_ms=inf", "deadline_ms", "inf", None),
        ("treshold=0.5", "treshold", "0.5", None),
    ],
)
@pytest.mark.parametrize("path", ["/classify", "/classify/batch"])
async def test_a_wrong_query_is_told_with_field_value_and_bound(
    client: httpx.AsyncClient,
    error_of: Callable[..., dict[str, Any]],
    path: str,
    query: str,
    field: str,
    value: object,
    bound: object,
) -> None:
    error = error_of(await client.post(f"{path}?{query}", content=unread(), headers=RAW), 422, "invalid_field")
    assert (error["field"], error["value"], error["bound"]) == (field, value, bound)
    assert error["message"].startswith(f"{field} is ")


async def test_a_model_that_is_not_served_is_told(
    client: httpx.AsyncClient, jpeg: bytes, error_of: Callable[..., dict[str, Any]]
) -> None:
    error = error_of(await client.post("/classify?model=huge", content=unread(), headers=RAW), 404, "not_found")
    assert (error["field"], error["value"], error["bound"]) == ("model", "huge", "tiny/1")
    assert (await client.post("/classify?model=tiny", content=jpeg, headers=RAW)).status_code == 200


async def test_a_batch_is_answered_in_order(client: httpx.AsyncClient, make_jpeg: Callable[[int], bytes]) -> None:
    images = [make_jpeg(seed) for seed in range(12)]
    alone = [(await client.post("/classify", content=image, headers=RAW)).json() for image in images]
    response = await client.post("/classify/batch", files=[("image", ("same.jpg", image)) for image in images])
    results = response.json()["results"]
    assert [result["label"] for result in results] == [answer["label"] for answer in alone]
    assert [result["score"] for result in results] == pytest.approx([answer["score"] for answer in alone], rel=1e-4)
    assert {result["request_id"] for result in results} == {response.headers["X-Request-ID"]}


async def test_a_bad_image_in_a_batch_fails_alone(client: httpx.AsyncClient, jpeg: bytes) -> None:
    parts = [jpeg, b"no image", b"", jpeg[:300], jpeg]
    response = await client.post("/classify/batch", files=[("image", (None, part)) for part in parts])
    results = response.json()["results"]
    assert response.status_code == 200
    assert [result.get("status") for result in results] == [None, 415, 400, 400, None]
    assert set(results[1]["error"]) == {"code", "message", "field", "value", "bound", "request_id"}
    assert without_chance(results[0]) == without_chance(results[4])


async def test_an_image_of_a_batch_beyond_the_limit_of_one_fails_alone(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    async with connect(make_app(max_image_bytes=len(jpeg))) as client:
        files = [("image", (None, jpeg)), ("image", (None, jpeg + b"x"))]
        results = (await client.post("/classify/batch", files=files)).json()["results"]
        assert "label" in results[0]
        assert (results[1]["status"], results[1]["error"]["bound"]) == (413, len(jpeg))


async def test_a_batch_holds_one_to_sixty_four_images(
    client: httpx.AsyncClient, jpeg: bytes, error_of: Callable[..., dict[str, Any]]
) -> None:
    most = await client.post("/classify/batch", files=[("image", (None, jpeg))] * 64)
    assert len(most.json()["results"]) == 64
    beyond = await client.post("/classify/batch", files=[("image", (None, jpeg))] * 65)
    error = error_of(beyond, 422, "invalid_field")
    assert (error["field"], error["value"], error["bound"]) == ("image", 65, "at most 64 parts")
    error_of(await client.post("/classify/batch", files=[("photo", (None, jpeg))]), 400, "bad_request")


async def test_a_batch_that_could_never_be_admitted_is_not_told_to_come_back(
    make_app: Callable[..., FastAPI],
    connect: Callable[..., Any],
    jpeg: bytes,
    error_of: Callable[..., dict[str, Any]],
) -> None:
    async with connect(make_app(max_images_in_flight=2)) as client:
        assert (await client.post("/classify/batch", files=[("image", (None, jpeg))] * 2)).status_code == 200
        response = await client.post("/classify/batch", files=[("image", (None, jpeg))] * 3)
        assert error_of(response, 422, "invalid_field")["bound"] == "at most 2 parts"


async def test_a_batch_is_multipart(
    client: httpx.AsyncClient, jpeg: bytes, error_of: Callable[..., dict[str, Any]]
) -> None:
    error_of(await client.post("/classify/batch", content=jpeg, headers=RAW), 415, "unsupported_body")


async def test_an_image_of_exactly_the_limit_is_read_in_every_form(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes, forms: dict[str, dict[str, Any]]
) -> None:
    async with connect(make_app(max_image_bytes=len(jpeg))) as client:
        for form in FORMS:
            assert (await client.post("/classify", **forms[form])).status_code == 200
