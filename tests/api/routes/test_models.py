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
        "classes": list(spec.classes), "resolution": spec.preprocessing.crop, "low_mmacs": spec.low_mmacs,
        "high_mmacs": spec.high_mmacs, "default_threshold": 0.65, "dataset": "nothing",
        "calibration_images": spec.calibration[0].n,
    }  # fmt: skip
    assert [point["threshold"] for point in curve] == [row.threshold for row in spec.calibration[0].rows]


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
