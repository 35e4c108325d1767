"""``/config/model`` where a model is tried: what is refused, and what it tells."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

pytestmark = pytest.mark.anyio

Connect = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]
ErrorOf = Callable[[httpx.Response, int, str], dict[str, Any]]

PATH = "/config/model"
RAW = {"Content-Type": "image/jpeg"}
SHADOW = {"model": "tiny/2", "shadow": True}


@pytest.fixture(scope="module")
async def quiet(
    make_app: Callable[..., FastAPI], connect: Connect, trial_store: Path
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app that serves ``tiny/1``, on which nothing is tried."""
    async with connect(make_app(model_store=trial_store, model="tiny/1")) as client:
        yield client


@pytest.fixture
async def trying(
    make_app: Callable[..., FastAPI], connect: Connect, trial_store: Path
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app of the test's own, with ``tiny/2`` as a shadow."""
    async with connect(make_app(model_store=trial_store, model="tiny/1")) as client:
        assert (await client.patch(PATH, json=SHADOW)).status_code == 200
        yield client


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "model"),
        ({"model": None, "share": 0.1}, "model"),
        ({"model": "tiny/2", "share": 1.5}, "share"),
        ({"model": "tiny/2", "share": -0.1}, "share"),
        ({"model": "tiny/2", "share": "0.1"}, "share"),
        ({"model": "tiny/2", "share": True}, "share"),
        ({"model": "tiny/2", "share": None}, "share"),
        ({"model": "tiny/2", "shadow": 1}, "shadow"),
        ({"model": "tiny/2", "shadow": None}, "shadow"),
        ({"model": "tiny/2", "shadow": False}, "share"),
        ({"model": "tiny/2", "max_disagreement": 0.1}, "share"),
        ({"model": "tiny/2", "share": 0.1, "max_disagreement": -0.1}, "max_disagreement"),
        ({"model": "tiny/2", "share": 0.1, "max_disagreement": 1}, "max_disagreement"),
        ({"model": "tiny/2", "share": 0.1, "max_disagreement": "no"}, "max_disagreement"),
        ({"model": "tiny/1", "share": 0.1}, "model"),
        ({"model": "tiny/4", "share": 0.1}, "model"),
        ({"model": "tiny/5", "shadow": True}, "model"),
        ({"promote": False}, "promote"),
        ({"promote": True, "cancel": True}, "promote"),
        ({"cancel": True, "share": 0.1}, "cancel"),
        ({"cancel": None}, "cancel"),
        ({"model": "tiny/2", "share": 0.1, "percent": 5}, "percent"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_its_field(
    quiet: httpx.AsyncClient, error_of: ErrorOf, body: dict[str, Any], field: str
) -> None:
    error = error_of(await quiet.patch(PATH, json=body), 422, "invalid_field")
    assert error["field"] == field
    assert (await quiet.get(PATH)).json()["version"] == 1


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
async def test_a_share_that_is_no_number_is_refused(quiet: httpx.AsyncClient, error_of: ErrorOf, number: str) -> None:
    body = f'{{"model": "tiny/2", "share": {number}}}'
    response = await quiet.patch(PATH, content=body, headers={"Content-Type": "application/json"})
    assert error_of(response, 422, "invalid_field")["field"] == "share"


async def test_classes_that_differ_are_named(quiet: httpx.AsyncClient, error_of: ErrorOf) -> None:
    error = error_of(await quiet.patch(PATH, json={"model": "tiny/4", "share": 0.1}), 422, "invalid_field")
    assert (error["value"], "'cow'" in error["bound"], "'cat'" in error["bound"]) == ("tiny/4", True, True)


async def test_a_model_that_is_not_there_is_named_with_what_is(quiet: httpx.AsyncClient, error_of: ErrorOf) -> None:
    error = error_of(await quiet.patch(PATH, json={"model": "tiny/9", "share": 0.1}), 404, "not_found")
    assert (error["field"], error["value"], error["bound"]) == ("model", "tiny/9", "1, 2, 3, 4, 5")


@pytest.mark.parametrize("body", [{"promote": True}, {"cancel": True}, {"share": 0.1}, {"max_disagreement": 0.02}])
async def test_of_no_trial_nothing_can_be_asked(
    quiet: httpx.AsyncClient, error_of: ErrorOf, body: dict[str, Any]
) -> None:
    error = error_of(await quiet.patch(PATH, json=body), 409, "conflict")
    assert error["field"] in ("promote", "cancel", "model")
    assert error["bound"]


@pytest.mark.parametrize("body", [{"model": "tiny/3", "share": 0.1}, {"model": "tiny/3"}, {"model": "tiny/2"}])
async def test_while_one_is_tried_another_is_a_conflict_that_names_it(
    trying: httpx.AsyncClient, error_of: ErrorOf, body: dict[str, Any]
) -> None:
    error = error_of(await trying.patch(PATH, json=body), 409, "conflict")
    assert (error["field"], error["value"], error["bound"]) == ("model", body["model"], "tiny/2")


async def test_it_is_part_of_the_config_and_has_its_version(trying: httpx.AsyncClient, error_of: ErrorOf) -> None:
    told = await trying.get(PATH)
    assert (told.headers["ETag"], told.json()["version"]) == ('"2"', 2)
    trial = told.json()["trial"]
    assert (trial["model"], trial["beside"], trial["kind"]) == (
        {"name": "tiny", "version": 2}, {"name": "tiny", "version": 1}, "shadow",
    )  # fmt: skip
    assert (trial["share"], trial["images"], trial["agreement"], trial["agreement_at_least"]) == (1.0, 0, None, None)
    stale = await trying.patch(PATH, json={"cancel": True}, headers={"If-Match": '"1"'})
    error_of(stale, 412, "config_conflict")
    changed = await trying.patch(PATH, json={"share": 0.5, "shadow": False}, headers={"If-Match": '"2"'})
    assert (changed.json()["trial"]["kind"], changed.headers["ETag"]) == ("canary", '"3"')
    assert (await trying.patch("/config/threshold", json={"threshold": 0.25})).status_code == 200
    assert (await trying.get(PATH)).json()["trial"]["threshold"] == 0.25
    assert set((await trying.get("/config")).json()) == {"version", "models", "thresholds"}


async def test_a_version_that_is_named_is_not_answered_by_a_canary(trying: httpx.AsyncClient, jpeg: bytes) -> None:
    await trying.patch(PATH, json={"share": 1, "shadow": False})
    answers = [
        (await trying.post("/classify", params=params, content=jpeg, headers=RAW)).json()["model"]["version"]
        for params in ({}, {"model": "tiny"}, {"model": "tiny/1"})
    ]
    assert answers == [2, 2, 1]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(jpeg).decode()]}
    infer = [
        (await trying.post(f"/v2/models/{path}/infer", json={"inputs": [tensor]})).json()["model_version"]
        for path in ("tiny", "tiny/versions/1")
    ]
    assert infer == ["2", "1"]
