"""``GET /models``: the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.store import read_spec

pytestmark = pytest.mark.anyio


async def test_a_model_is_listed_with_its_costs_and_its_curve(client: httpx.AsyncClient, tiny_store: Path) -> None:
    spec = read_spec(tiny_store / "tiny" / "1")
    (model,) = (await client.get("/models")).json()["models"]
    curve = model.pop("curve")
    assert model == {
        "name": "tiny", "version": 1, "serving": True, "network": spec.architecture.network,
        "classes": list(spec.classes), "resolution": spec.preprocessing.crop, "resize": spec.preprocessing.resize,
        "low_mmacs": spec.mmacs[0],
        "high_mmacs": spec.mmacs[1], "stages": [
            {"name": "low", "resolution": 32, "mmacs": spec.mmacs[0]},
            {"name": "high", "resolution": 64, "mmacs": spec.mmacs[1]},
        ], "default_threshold": 0.65, "dataset": "nothing",
        "calibration_images": spec.calibration[0].n,
    }  # fmt: skip
    assert [point["threshold"] for point in curve] == [row.threshold for row in spec.calibration[0].rows]


async def test_models_of_any_depth_are_listed_with_their_stages(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], cascades: Path
) -> None:
    async with connect(make_app(model_store=cascades, model="deep")) as client:
        models = {model["name"]: model for model in (await client.get("/models")).json()["models"]}
    found = {name: [(each["name"], each["resolution"]) for each in models[name]["stages"]] for name in models}
    assert found == {
        "deep": [("low", 16), ("middle", 32), ("high", 64)], "single": [("single", 64)],
        "tiny": [("low", 32), ("high", 64)],
    }  # fmt: skip
    assert models["single"]["low_mmacs"] == models["single"]["high_mmacs"] == models["deep"]["stages"][-1]["mmacs"]
    assert {len(point["ends"]) for point in models["deep"]["curve"]} == {3}
    assert {point["exit_rate"] for point in models["single"]["curve"]} == {0}


async def test_every_version_is_listed_and_one_is_serving(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], tiny_store: Path, tmp_path: Path
) -> None:
    for version in ("1", "2", "10"):
        text = (tiny_store / "tiny" / "1" / "model.json").read_text().replace('"version": 1,', f'"version": {version},')
        shutil.copytree(tiny_store / "tiny" / "1", tmp_path / "tiny" / version)
        (tmp_path / "tiny" / version / "model.json").write_text(text)
    async with connect(make_app(model_store=tmp_path, model="tiny/2")) as client:
        models = (await client.get("/models")).json()["models"]
    assert [(model["version"], model["serving"]) for model in models] == [(1, False), (2, True), (10, False)]


async def test_a_model_that_cannot_be_read_does_not_hide_the_others(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], tiny_store: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    spec = (store / "tiny" / "1" / "model.json").read_text()
    spoiled = {
        "2": "{",
        "3": spec.replace('"version": 1,', '"version": 3,').replace('"mmacs": ', '"mmacs": "many", "was": '),
        "4": spec.replace('"version": 1,', '"version": 4,').replace('"crop": 64', '"crop": "big"'),
    }
    async with connect(make_app(model_store=store)) as client:
        for version, text in spoiled.items():
            (store / "tiny" / version).mkdir()
            (store / "tiny" / version / "model.json").write_text(text)
        answer = await client.get("/models")
    assert [model["version"] for model in answer.json()["models"]] == [1]
    assert sorted(answer.json()["broken"]) == ["tiny/2", "tiny/3", "tiny/4"]
    assert str(store) not in answer.text


@pytest.mark.parametrize(
    "name", ["../tiny", "/etc/passwd", "tiny\0", "tiny/../tiny", "t\u0456ny", "x" * 5000, "", "tiny/2"]
)
@pytest.mark.parametrize("path", ["/classify", "/config/threshold", "/config/threshold/preview?threshold=1"])
async def test_a_name_of_no_model_leads_nowhere(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]], path: str, name: str
) -> None:
    method = "POST" if path == "/classify" else "GET"
    response = await client.request(method, httpx.URL(path).copy_merge_params({"model": name}))
    error = error_of(response, 404, "not_found")
    assert error["field"] == "model"
    assert len(response.content) < 20_000
