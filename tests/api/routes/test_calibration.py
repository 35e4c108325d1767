"""``/calibration/live``, and thresholds that follow it: over HTTP, by a server that audits every image that exits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

pytestmark = pytest.mark.anyio

Connect = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]
ErrorOf = Callable[..., dict[str, Any]]

PATH, LIVE = "/config/threshold", "/calibration/live"
RAW = {"Content-Type": "image/jpeg"}


async def classify(client: httpx.AsyncClient, images: list[bytes], **query: Any) -> list[dict[str, Any]]:
    return [(await client.post("/classify", params=query, content=image, headers=RAW)).json() for image in images]


async def seen(client: httpx.AsyncClient, count: int) -> dict[str, Any]:
    """The live table once so many images are in it: audits come after their answers."""
    async with asyncio.timeout(30):
        while (answer := (await client.get(LIVE)).json())["images"] < count:
            await asyncio.sleep(0)
    return dict(answer)


async def test_table_is_counted_of_exits_and_escalations_alike(
    make_app: Callable[..., FastAPI], connect: Connect, make_jpeg: Callable[[int], bytes]
) -> None:
    images = [make_jpeg(seed) for seed in range(60)]
    async with connect(make_app(audit_probability=1)) as client:
        await client.patch(PATH, json={"threshold": 1})
        known = await classify(client, images, passes=True)
        escalated = await seen(client, 60)
        await client.patch(PATH, json={"threshold": 0.5})
        answers = await classify(client, images)
        await classify(client, images[:9], threshold=0.1)  # not governed by what is asked for: left out
        both = await seen(client, 120)
    assert {answer["exit"] for answer in answers} == {"low", "high"}
    assert escalated["stands_for"] == 60
    assert escalated["exit_rate"] == 0
    for twice, answer in ((1, escalated), (2, both)):
        assert answer["images"] == answer["live"]["images"] == 60 * twice
        for row in answer["live"]["rows"][::10]:
            exits = [each for each in known if each["confidence"] > row["threshold"]]
            disagree = [each for each in exits if each["passes"]["low"][0] != each["passes"]["high"][0]]
            labels = [each for each in exits if each["passes"]["low"][0]["label"] != each["passes"]["high"][0]["label"]]
            assert len(labels) <= len(disagree)
            assert row["ends"] == [twice * len(exits), twice * (60 - len(exits))]
            assert row["disagreements"] == twice * len(labels)
            assert row["agreement_at_least"] <= row["agreement"]
    assert (both["table"], both["followed"], both["stored"]["images"]) == ("stored", None, 60)
    assert {test["of"]: test["test"] for test in both["drift"]["tests"]} == {
        "exit_rate": "chi-squared",
        "confidence": "Kolmogorov-Smirnov",
        "agreement": "Fisher's exact",
        "classes": "chi-squared",
    }
    assert both["drift"]["level"] == 4 * both["drift"]["level_of_each"] == 0.05


async def test_table_of_an_unused_server_is_empty(fresh: httpx.AsyncClient) -> None:
    answer = (await fresh.get(LIVE)).json()
    assert (answer["images"], answer["exit_rate"], answer["drawn_per_second"], answer["adapts_in_seconds"]) == (
        0, None, None, None,
    )  # fmt: skip
    assert {tuple(row["ends"]) for row in answer["live"]["rows"]} == {(0, 0)}
    assert (answer["drift"]["differs"], answer["drift"]["notice"]) == (None, None)
    assert (await fresh.get("/stats")).json()["drift"]["differs"] is None


async def test_a_goal_by_the_live_table_is_solved_on_it_and_followed(
    make_app: Callable[..., FastAPI], connect: Connect, make_jpeg: Callable[[int], bytes], error_of: ErrorOf
) -> None:
    async with connect(make_app(audit_probability=1)) as client:
        error = error_of(await client.patch(PATH, json={"min_agreement": 0.9, "table": "live"}), 422, "invalid_field")
        assert error["field"] == "min_agreement"
        assert "29 sampled images are needed, 0 exist" in error["message"]
        assert "no new ones arrive at present" in error["message"]
        await classify(client, [make_jpeg(seed) for seed in range(40)])
        await seen(client, 40)
        error = error_of(await client.patch(PATH, json={"min_agreement": 0.97, "table": "live"}), 422, "invalid_field")
        assert "99 sampled images are needed" in error["message"]
        assert "40 exist; at the current rate" in error["message"]
        answer = (await client.patch(PATH, json={"min_agreement": 0.6, "table": "live"})).json()
        rows = (await client.get(LIVE)).json()["live"]["rows"]
        stats = (await client.get("/stats")).json()
        again = (await client.get(PATH)).json()
        floor = (await client.patch(PATH, json={"floor": 0.0})).json()
        back = (await client.patch(PATH, json={"min_agreement": 0.6})).json()
    lowest = next(row for row in rows if row["agreement_at_least"] >= 0.6)
    assert all(row["agreement_at_least"] >= 0.6 for row in rows if row["threshold"] >= answer["threshold"])
    assert answer["threshold"] >= lowest["threshold"]
    assert (answer["goal"], answer["value"], answer["table"]) == ("min_agreement", 0.6, "live")
    assert answer["followed"]["lost"] is None
    assert [change["after"] for change in answer["followed"]["changes"]] == [answer["threshold"]]
    assert again["threshold"] == stats["threshold"] == answer["threshold"]
    assert stats["audit"]["allowed"] == pytest.approx(0.4)
    assert (floor["table"], floor["threshold"], floor["floor"]) == ("live", answer["threshold"], 0)
    assert (back["table"], back["followed"]) == ("stored", None)


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"min_agreement": 0.9, "table": "yesterday"}, "table", "'stored' or 'live'"),
        ({"min_agreement": 0.9, "table": None}, "table", "'stored' or 'live'"),
        ({"table": "live"}, "table", "used with one of"),
        ({"floor": 0.1, "table": "live"}, "table", "used with one of"),
        ({"threshold": 0.5, "table": "live"}, "table", "absent with threshold"),
        ({"max_accuracy_drop": 0.1, "table": "live"}, "max_accuracy_drop", "no labels"),
        ({"min_agreement": 0.9, "table": "live"}, "table", "LOWFIRST_AUDIT_PROBABILITY is 0"),
        ({"max_mean_mmacs": 30.0, "table": "live"}, "max_mean_mmacs", "100 images are needed, 0 exist"),
    ],
)
async def test_what_the_live_table_cannot_answer_is_refused(
    fresh: httpx.AsyncClient, error_of: ErrorOf, body: dict[str, Any], field: str, words: str
) -> None:
    error = error_of(await fresh.patch(PATH, json=body), 422, "invalid_field")
    assert error["field"] == field
    assert words in error["message"]
    assert (await fresh.get(PATH)).json()["version"] == 1


async def test_an_unknown_model_has_no_live_table(client: httpx.AsyncClient, error_of: ErrorOf) -> None:
    error_of(await client.get(LIVE, params={"model": "nobody"}), 404, "not_found")


async def test_a_model_of_one_stage_follows_nothing(
    make_app: Callable[..., FastAPI], connect: Connect, cascades: Any, jpeg: bytes, error_of: ErrorOf
) -> None:
    async with connect(make_app(model_store=cascades, model="single", audit_probability=1)) as client:
        await classify(client, [jpeg])
        assert (await client.get(LIVE)).json()["drift"] is None
        error = error_of(await client.patch(PATH, json={"min_agreement": 0.9, "table": "live"}), 422, "invalid_field")
    assert "one stage" in error["message"]


async def test_a_model_of_three_stages_shows_what_every_stage_said(
    make_app: Callable[..., FastAPI], connect: Connect, cascades: Any, make_jpeg: Callable[[int], bytes]
) -> None:
    images = [make_jpeg(seed) for seed in range(30)]
    async with connect(make_app(model_store=cascades, model="deep", audit_probability=1)) as client:
        await client.patch(PATH, json={"threshold": 1})
        known = await classify(client, images, passes=True)
        escalated = await seen(client, 30)
        await client.patch(PATH, json={"threshold": 0})
        await classify(client, images)
        both = await seen(client, 60)
    for row, twice in zip(escalated["live"]["rows"], both["live"]["rows"], strict=True):
        assert twice["ends"] == [2 * count for count in row["ends"]]
        assert twice["disagreements"] == 2 * row["disagreements"]
    first = escalated["live"]["rows"][0]
    labels = [(each["passes"]["low"][0]["label"], each["passes"]["high"][0]["label"]) for each in known]
    assert (first["ends"], first["disagreements"]) == ([30, 0, 0], sum(low != high for low, high in labels))


async def test_a_budget_by_the_live_table_is_held_on_todays_traffic_and_promise_kept_speaks_of_it(
    make_app: Callable[..., FastAPI], connect: Connect, make_jpeg: Callable[[int], bytes]
) -> None:
    async with connect(make_app()) as client:  # without audits
        images = [make_jpeg(seed) for seed in range(110)]
        answers = await classify(client, images, passes=True)
        model = (await client.get("/models")).json()["models"][0]
        low, high = model["low_mmacs"], model["high_mmacs"]
        sure = sorted(answer["confidence"] for answer in answers)
        budget = low + 0.5 * high
        held = (await client.patch(PATH, json={"max_mean_mmacs": budget, "table": "live"})).json()
        stats = (await client.get("/stats")).json()
        assert stats["budget"] == {
            "goal": "max_mean_mmacs", "asked": budget, "images": 0, "mean": None, "kept": None
        }  # fmt: skip
        assert stats["since_change"]["images"] == 0
        assert stats["last_minute"]["images"] == 110
        assert stats["audit"]["promise_kept"] is None
        await classify(client, images)
        stats = (await client.get("/stats")).json()
        exits = sum(each > held["threshold"] for each in sure)
        assert exits >= 55 > sum(each > held["threshold"] + 0.011 for each in sure)
        assert stats["since_change"]["images"] == stats["budget"]["images"] == 110
        assert stats["since_change"]["exit_rate"] == pytest.approx(exits / 110)
        assert stats["budget"]["mean"] == pytest.approx(low + (1 - exits / 110) * high)
        assert (stats["budget"]["kept"], stats["audit"]["promise_kept"]) == (True, True)

        # Of images that all escalate, what the stored table allows costs more than was asked for, and that is said.
        stored = (await client.patch(PATH, json={"max_mean_mmacs": low + 0.1 * high})).json()
        known = zip(images, answers, strict=True)
        unsure = [image for image, answer in known if answer["confidence"] < stored["threshold"]]
        assert unsure
        await classify(client, (unsure * 110)[:110])
        stats = (await client.get("/stats")).json()
    assert stats["budget"]["mean"] == pytest.approx(low + high)
    assert stats["budget"]["kept"] is stats["audit"]["promise_kept"] is False


async def test_accuracies_carry_their_interval(client: httpx.AsyncClient) -> None:
    predicted = (await client.get(PATH)).json()["predicted"]
    low, high = predicted["accuracy_interval"]
    assert 0 <= low < predicted["accuracy"] < high <= 1
