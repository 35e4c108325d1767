"""The runtime config over HTTP: the threshold in five forms, its floor, its version."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.errors import BrokenModel, InvalidOption
from service.inference.latency import LatencyProfile, LatencyTable
from service.store import read_spec, write_spec

pytestmark = pytest.mark.anyio

Connect = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]

PATH = "/config/threshold"
RAW = {"Content-Type": "image/jpeg"}
JSON = {"Content-Type": "application/json"}


async def test_the_default_threshold_comes_with_its_predicted_effect(client: httpx.AsyncClient) -> None:
    response = await client.get(PATH)
    answer = response.json()
    predicted = answer.pop("predicted")
    assert answer == {
        "model": "tiny", "goal": "threshold", "value": 0.65, "threshold": 0.65, "floor": None, "version": 1,
        "table": "stored", "followed": None,
    }  # fmt: skip
    assert set(predicted) == {
        "exit_rate", "ends", "mean_mmacs", "mean_ms", "single_scale_ms", "saved", "accuracy", "agreement",
        "agreement_at_least", "accuracy_drop_at_most", "accuracy_interval",
    }  # fmt: skip
    assert response.headers["ETag"] == '"1"'


async def test_the_config_holds_every_threshold(client: httpx.AsyncClient) -> None:
    assert (await client.get("/config")).json() == {
        "version": 1,
        "models": [{"name": "tiny", "version": 1}],
        "thresholds": [(await client.get(PATH)).json()],
    }


@pytest.mark.parametrize(
    ("goal", "value"),
    [
        ("threshold", 0.5),
        ("max_mean_mmacs", 3),
        ("max_mean_ms", 1000),
        ("min_agreement", 0.8),
        ("max_accuracy_drop", 0.1),
    ],
)
async def test_the_threshold_is_asked_for_in_five_ways(fresh: httpx.AsyncClient, goal: str, value: float) -> None:
    response = await fresh.patch(PATH, json={goal: value})
    answer = response.json()
    assert (response.status_code, answer["goal"], answer["value"], answer["version"]) == (200, goal, value, 2)
    assert response.headers["ETag"] == '"2"'
    assert (await fresh.get(PATH)).json() == answer
    predicted = answer["predicted"]
    kept = {
        "threshold": answer["threshold"] == value,
        "max_mean_mmacs": predicted["mean_mmacs"] <= value,
        "max_mean_ms": predicted["mean_ms"] <= value,
        "min_agreement": predicted["agreement_at_least"] >= value,
        "max_accuracy_drop": predicted["accuracy_drop_at_most"] <= value,
    }
    assert kept[goal]


async def test_the_next_image_is_answered_by_the_new_threshold(fresh: httpx.AsyncClient, jpeg: bytes) -> None:
    for threshold, exit_ in ((0, "low"), (1, "high"), (0.0, "low"), (1.0, "high")):
        version = (await fresh.patch(PATH, json={"threshold": threshold})).json()["version"]
        answer = (await fresh.post("/classify", content=jpeg, headers=RAW)).json()
        assert (answer["exit"], answer["threshold"], answer["config_version"]) == (exit_, threshold, version)


async def test_thresholds_zero_and_one_predict_all_and_nothing(fresh: httpx.AsyncClient) -> None:
    model = (await fresh.get("/models")).json()["models"][0]
    all_exit = (await fresh.patch(PATH, json={"threshold": 0})).json()["predicted"]
    none_exits = (await fresh.patch(PATH, json={"threshold": 1})).json()["predicted"]
    assert (all_exit["exit_rate"], all_exit["mean_mmacs"]) == (1, model["low_mmacs"])
    assert (none_exits["exit_rate"], none_exits["agreement"]) == (0, 1)
    assert none_exits["mean_mmacs"] == pytest.approx(model["low_mmacs"] + model["high_mmacs"])


async def test_a_budget_below_the_first_stage_is_refused(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]]
) -> None:
    error = error_of(await client.patch(PATH, json={"max_mean_mmacs": 0.5}), 422, "invalid_field")
    assert (error["field"], error["value"]) == ("max_mean_mmacs", 0.5)
    assert "at least" in error["bound"]


async def test_a_budget_of_time_is_kept_by_the_measured_times(
    make_app: Callable[..., FastAPI], connect: Connect, tmp_path: Path, error_of: Callable[..., dict[str, Any]]
) -> None:
    LatencyProfile(LatencyTable(({1: 0.001}, {1: 0.004}), {1: 0.004})).write(tmp_path / "profile.json")
    async with connect(make_app(profile=tmp_path / "profile.json")) as client:
        answer = (await client.patch(PATH, json={"max_mean_ms": 3})).json()
        predicted = answer["predicted"]
        escalated = 1 - predicted["exit_rate"]
        assert predicted["mean_ms"] == pytest.approx(1 + 4 * escalated)
        assert 0 < predicted["mean_ms"] <= 3
        assert predicted["single_scale_ms"] == pytest.approx(4)
        assert predicted["saved"] == pytest.approx(1 - predicted["mean_ms"] / 4)
        curve = (await client.get("/models")).json()["models"][0]["curve"]
        higher = [point for point in curve if point["threshold"] > answer["threshold"]]
        assert all(point["mean_ms"] > 3 for point in higher)  # it is the highest
        none = (await client.patch(PATH, json={"threshold": 1})).json()["predicted"]
        assert none["saved"] == pytest.approx(-0.25)  # both stages take longer than the single-scale network
        error = error_of(await client.patch(PATH, json={"max_mean_ms": 0.5}), 422, "invalid_field")
        assert (error["field"], error["value"]) == ("max_mean_ms", 0.5)
        assert error["bound"] == "at least 1 ms, the cost of the first stage"


async def test_time_saved_is_null_where_the_single_scale_network_was_not_measured(
    make_app: Callable[..., FastAPI], connect: Connect, tmp_path: Path
) -> None:
    LatencyProfile(LatencyTable(({1: 0.001}, {1: 0.004}))).write(tmp_path / "profile.json")
    async with connect(make_app(profile=tmp_path / "profile.json")) as client:
        predicted = (await client.get(PATH)).json()["predicted"]
        spent = (await client.get("/stats")).json()["time"]
    assert predicted["mean_ms"] > 1
    assert (predicted["single_scale_ms"], predicted["saved"]) == (None, None)
    assert (spent["single_scale_ms"], spent["saved"]) == (None, None)


async def test_a_goal_that_takes_a_calibration_table_is_refused_without_one(
    make_app: Callable[..., FastAPI],
    connect: Connect,
    tiny_store: Path,
    tmp_path: Path,
    error_of: Callable[..., dict[str, Any]],
) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    folder = store / "tiny" / "1"
    write_spec(folder, dataclasses.replace(read_spec(folder), calibration=()))
    async with connect(make_app(model_store=store)) as client:
        for goal in ("max_mean_ms", "max_mean_mmacs", "min_agreement"):
            error = error_of(await client.patch(PATH, json={goal: 1}), 422, "invalid_field")
            assert (error["field"], "no calibration table" in error["bound"]) == (goal, True)
        assert (await client.get(PATH)).json()["predicted"] is None
        assert (await client.patch(PATH, json={"threshold": 0.5})).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"threshold": 1.5}', "threshold"),
        ('{"threshold": -1}', "threshold"),
        ('{"threshold": NaN}', "threshold"),
        ('{"threshold": Infinity}', "threshold"),
        ('{"threshold": 1e999}', "threshold"),
        ('{"threshold": "0.5"}', "threshold"),
        ('{"threshold": true}', "threshold"),
        ('{"threshold": null}', "threshold"),
        ('{"threshold": ' + "9" * 400 + "}", "threshold"),
        ('{"max_mean_mmacs": 0}', "max_mean_mmacs"),
        ('{"max_mean_ms": 0}', "max_mean_ms"),
        ('{"max_mean_ms": "1"}', "max_mean_ms"),
        ('{"max_mean_ms": NaN}', "max_mean_ms"),
        ('{"max_mean_ms": null}', "max_mean_ms"),
        ('{"max_mean_ms": 1, "max_mean_mmacs": 1}', None),
        ('{"min_agreement": 2}', "min_agreement"),
        ('{"min_agreement": 0.9999}', "min_agreement"),
        ('{"max_accuracy_drop": -0.1}', "max_accuracy_drop"),
        ('{"floor": 2}', "floor"),
        ('{"treshold": 0.5}', "treshold"),
        ('{"' + "x" * 1000 + '": 1}', "x" * 200 + "…"),
        ("{}", None),
        ('{"threshold": 0.5, "min_agreement": 0.5}', None),
        ("[0.5]", None),
        ("0.5", None),
    ],
)
async def test_a_wrong_change_names_its_field_and_changes_nothing(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]], body: str, field: str | None
) -> None:
    error = error_of(await client.patch(PATH, content=body, headers=JSON), 422, "invalid_field")
    assert error["field"] == field
    assert len(error["message"]) < 1000
    assert (await client.get("/config")).json()["version"] == 1


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"threshold": "\\ud800"}', b'{"\\ud800": 1}', b"[" * 4000])
async def test_broken_json_is_a_bad_request(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]], body: bytes
) -> None:
    error_of(await client.patch(PATH, content=body, headers=JSON), 400, "bad_request")


async def test_a_body_of_megabytes_is_refused(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]]
) -> None:
    error = error_of(await client.patch(PATH, content=b" " * 2**20, headers=JSON), 413, "image_too_large")
    assert (error["field"], error["value"], error["bound"]) == ("body", 2**20, 4096)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
async def test_a_change_that_is_not_json_is_refused(
    fresh: httpx.AsyncClient, kind: str, error_of: Callable[..., dict[str, Any]]
) -> None:
    response = await fresh.patch(PATH, content='{"threshold": 0.5}', headers={"Content-Type": kind})
    assert error_of(response, 415, "unsupported_body")["field"] == "Content-Type"


async def test_unknown_query_parameters_are_named(
    fresh: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]]
) -> None:
    response = await fresh.patch(PATH + "?modle=tiny", json={"threshold": 0.5})
    assert error_of(response, 422, "invalid_field")["field"] == "modle"


async def test_a_goal_that_is_null_is_not_given(fresh: httpx.AsyncClient) -> None:
    answer = (await fresh.patch(PATH, json={"threshold": None, "max_mean_mmacs": None, "min_agreement": 0.5})).json()
    assert (answer["goal"], answer["value"]) == ("min_agreement", 0.5)
    answer = (await fresh.patch(PATH, json={"max_mean_ms": None, "floor": 0.0})).json()
    assert (answer["goal"], answer["floor"]) == ("min_agreement", 0.0)


async def test_json_may_begin_with_a_byte_order_mark(fresh: httpx.AsyncClient) -> None:
    response = await fresh.patch(PATH, content=b'\xef\xbb\xbf{"threshold": 0.5}', headers=JSON)
    assert response.json()["threshold"] == 0.5


async def test_a_floor_is_kept_until_it_is_cleared(fresh: httpx.AsyncClient) -> None:
    for change, floor in (
        ({"floor": 0.4}, 0.4),
        ({"threshold": 0.6}, 0.4),
        ({"threshold": 0.7, "floor": 0.7}, 0.7),
        ({"floor": None}, None),
        ({"threshold": 0.6, "floor": 0.2}, 0.2),
        ({"threshold": 0.6, "floor": None}, None),
    ):
        answer = (await fresh.patch(PATH, json=change)).json()
        assert answer["floor"] == floor
    assert (answer["threshold"], answer["version"]) == (0.6, 7)


async def test_a_floor_above_the_threshold_is_refused(
    fresh: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]]
) -> None:
    await fresh.patch(PATH, json={"threshold": 0.6, "floor": 0.5})
    for change, floor in (({"floor": 0.61}, 0.61), ({"threshold": 0.1, "floor": 0.2}, 0.2)):
        error = error_of(await fresh.patch(PATH, json=change), 422, "invalid_field")
        assert (error["field"], error["value"]) == ("floor", floor)
        assert "at most the threshold" in error["bound"]
    error = error_of(await fresh.patch(PATH, json={"threshold": 0.4}), 422, "invalid_field")
    assert (error["field"], error["value"]) == ("threshold", 0.4)
    assert "at least the current floor, 0.5" in error["bound"]
    assert (await fresh.get(PATH)).json()["version"] == 2


@pytest.mark.parametrize("if_match", ['"1"', "1", "*", 'W/"1"', ' "1" '])
async def test_a_version_that_matches_lets_the_change_pass(fresh: httpx.AsyncClient, if_match: str) -> None:
    response = await fresh.patch(PATH, json={"threshold": 0.5}, headers={"If-Match": if_match})
    assert (response.status_code, response.json()["version"]) == (200, 2)


@pytest.mark.parametrize("if_match", ['"3"', "3", 'W/"3"'])
async def test_a_stale_version_is_a_conflict(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]], if_match: str
) -> None:
    response = await client.patch(PATH, json={"threshold": 0.5}, headers={"If-Match": if_match})
    error = error_of(response, 412, "config_conflict")
    assert (error["field"], error["value"], error["bound"]) == ("If-Match", 3, 1)
    assert (await client.get("/config")).json()["version"] == 1


@pytest.mark.parametrize("if_match", ["three", "", '"1", "2"'])
async def test_a_version_that_is_none_is_a_bad_request(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]], if_match: str
) -> None:
    response = await client.patch(PATH, json={"threshold": 0.5}, headers={"If-Match": if_match})
    error = error_of(response, 400, "bad_request")
    assert (error["field"], error["value"]) == ("If-Match", if_match)


async def test_the_etag_of_an_answer_guards_the_next_change(fresh: httpx.AsyncClient) -> None:
    seen = (await fresh.get(PATH)).headers["ETag"]
    guarded = {"If-Match": seen}
    assert (await fresh.patch(PATH, json={"threshold": 0.5}, headers=guarded)).status_code == 200
    assert (await fresh.patch(PATH, json={"threshold": 0.6}, headers=guarded)).status_code == 412


async def test_a_preview_tells_both_effects_and_changes_nothing(fresh: httpx.AsyncClient, jpeg: bytes) -> None:
    before = (await fresh.get("/config")).json()
    empty = (await fresh.get(f"{PATH}/preview?threshold=0.5")).json()
    assert empty["recent"] == {"images": 0, "exit_rate": None, "mean_mmacs": None}
    confidence = (await fresh.post("/classify", content=jpeg, headers=RAW)).json()["confidence"]
    below = (await fresh.get(f"{PATH}/preview", params={"threshold": confidence - 0.01})).json()
    above = (await fresh.get(f"{PATH}/preview", params={"threshold": confidence})).json()
    assert (below["recent"]["images"], below["recent"]["exit_rate"], above["recent"]["exit_rate"]) == (1, 1, 0)
    assert below["recent"]["mean_mmacs"] < above["recent"]["mean_mmacs"]
    assert (below["model"], above["threshold"]) == ("tiny", confidence)
    assert (await fresh.get("/config")).json() == before


async def test_a_preview_predicts_what_a_change_then_predicts(fresh: httpx.AsyncClient) -> None:
    preview = (await fresh.get(f"{PATH}/preview?threshold=0.42")).json()
    changed = (await fresh.patch(PATH, json={"threshold": 0.42})).json()
    assert preview["predicted"] == changed["predicted"]


@pytest.mark.parametrize(
    ("query", "value"), [("", None), ("?threshold=nan", "nan"), ("?threshold=2", "2"), ("?threshold=", "")]
)
async def test_a_preview_of_no_threshold_is_refused(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]], query: str, value: str | None
) -> None:
    error = error_of(await client.get(f"{PATH}/preview{query}"), 422, "invalid_field")
    assert (error["field"], error["value"]) == ("threshold", value)


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("PATCH", PATH), ("GET", f"{PATH}/preview")])
async def test_the_config_of_a_model_that_is_not_served_is_not_found(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]], method: str, path: str
) -> None:
    params = {"model": "huge", **({"threshold": "0.5"} if path.endswith("preview") else {})}
    response = await client.request(method, path, params=params, content='{"threshold": 0.5}', headers=JSON)
    assert error_of(response, 404, "not_found")["field"] == "model"


# which model is served


async def test_another_version_is_served_and_answers_say_so(
    make_app: Callable[..., FastAPI], connect: Connect, two_versions: Path, jpeg: bytes
) -> None:
    async with connect(make_app(model_store=two_versions, model="tiny/1")) as client:
        await client.patch(PATH, json={"threshold": 0.3})
        response = await client.patch("/config/model", json={"model": "tiny"})
        assert response.status_code == 200
        assert response.headers["ETag"] == '"3"'
        assert response.json() == (await client.get("/config")).json()
        assert response.json()["models"] == [{"name": "tiny", "version": 2}]
        assert [each["threshold"] for each in response.json()["thresholds"]] == [0.3]
        answer = (await client.post("/classify", content=jpeg, headers=RAW)).json()
        assert (answer["model"], answer["config_version"]) == ({"name": "tiny", "version": 2}, 3)
        assert (await client.get("/stats")).json()["model"]["version"] == 2
        serving = {(model["name"], model["version"]) for model in (await client.get("/models")).json()["models"]
                   if model["serving"]}  # fmt: skip
        assert serving == {("tiny", 2)}


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"model": "huge"}, 404, "not_found", "model"),
        ({"model": "tiny/7"}, 404, "not_found", "model"),
        ({"model": "broken"}, 422, "invalid_field", "model"),
        ({"model": "../tiny"}, 422, "invalid_field", "model"),
        ({"model": "tiny/../../etc"}, 404, "not_found", "model"),
        ({"model": 1}, 422, "invalid_field", "model"),
        ({}, 422, "invalid_field", "model"),
        ({"model": "tiny", "version": 2}, 422, "invalid_field", "version"),
    ],
)
async def test_a_model_that_cannot_be_served_changes_nothing(
    make_app: Callable[..., FastAPI],
    connect: Connect,
    two_versions: Path,
    error_of: Callable[..., dict[str, Any]],
    body: dict[str, Any],
    status: int,
    code: str,
    field: str,
) -> None:
    async with connect(make_app(model_store=two_versions, model="tiny/1")) as client:
        before = (await client.get("/config")).json()
        assert error_of(await client.patch("/config/model", json=body), status, code)["field"] == field
        assert (await client.get("/config")).json() == before


async def test_a_stale_version_keeps_the_model(
    make_app: Callable[..., FastAPI], connect: Connect, two_versions: Path, error_of: Callable[..., dict[str, Any]]
) -> None:
    async with connect(make_app(model_store=two_versions, model="tiny/1")) as client:
        response = await client.patch("/config/model", json={"model": "tiny/2"}, headers={"If-Match": '"7"'})
        error_of(response, 412, "config_conflict")
        assert (await client.get("/config")).json()["models"] == [{"name": "tiny", "version": 1}]


async def test_several_models_are_served_by_name(
    make_app: Callable[..., FastAPI], connect: Connect, two_versions: Path, jpeg: bytes
) -> None:
    async with connect(make_app(model_store=two_versions, model="tiny/1", models=("other",))) as client:
        await client.patch(PATH, params={"model": "other"}, json={"threshold": 0.0})
        answers = [
            (await client.post("/classify", params=params, content=jpeg, headers=RAW)).json()
            for params in ({}, {"model": "tiny/1"}, {"model": "other"})
        ]
        assert [(answer["model"]["name"], answer["threshold"]) for answer in answers] == [
            ("tiny", 0.65), ("tiny", 0.65), ("other", 0.0),
        ]  # fmt: skip
        assert (await client.get("/stats", params={"model": "other"})).json()["images"] == 1
        await client.patch("/config/model", params={"model": "tiny"}, json={"model": "tiny/2"})
        models = (await client.get("/config")).json()["models"]
        assert models == [{"name": "tiny", "version": 2}, {"name": "other", "version": 1}]


async def test_a_model_named_twice_is_refused(make_app: Callable[..., FastAPI], two_versions: Path) -> None:
    with pytest.raises(InvalidOption, match="LOWFIRST_MODELS is 'tiny/2'; it must be other models"):
        make_app(model_store=two_versions, model="tiny/1", models=("tiny/2",))


@pytest.mark.parametrize("reference", ["broken/1", "stranger/1"])
async def test_a_model_that_is_not_what_its_folder_says_is_refused(
    make_app: Callable[..., FastAPI], tiny_store: Path, two_versions: Path, tmp_path: Path, reference: str
) -> None:
    shutil.copytree(two_versions / "broken" / "1", tmp_path / "broken" / "1")
    shutil.copytree(tiny_store / "tiny" / "1", tmp_path / "stranger" / "1")
    with pytest.raises(BrokenModel, match=r"SHA-256|stranger/1 says that it is tiny/1"):
        make_app(model_store=tmp_path, model=reference)


@pytest.mark.parametrize("header", ['"' + "9" * 5000 + '"', "٣", "-1", "1.5"])
async def test_a_version_that_is_no_number_is_refused(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]], header: str
) -> None:
    headers = [(b"If-Match", header.encode()), (b"Content-Type", b"application/json")]
    error = error_of(await client.patch(PATH, content='{"threshold": 0.5}', headers=headers), 400, "bad_request")
    assert error["field"] == "If-Match"


async def test_a_goal_solved_for_a_version_that_was_exchanged_meanwhile_is_a_conflict(
    make_app: Callable[..., FastAPI],
    connect: Connect,
    two_versions: Path,
    monkeypatch: pytest.MonkeyPatch,
    error_of: Callable[..., dict[str, Any]],
) -> None:
    monkeypatch.setattr("service.engine.tuning.FOLLOW_SECONDS", 3600)  # a replica that has not noticed yet
    app = make_app(model_store=two_versions, model="tiny/1")
    async with connect(app) as client:
        await app.state.parts.config.update(lambda now: dataclasses.replace(now, models={"tiny": 2}))
        error_of(await client.patch(PATH, json={"min_agreement": 0.5}), 412, "config_conflict")
