"""``/v2/models/…/config`` and ``/stats``: what is said is what was done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

pytestmark = pytest.mark.anyio

MODEL = "/v2/models/tiny"
RAW = {"Content-Type": "image/jpeg"}


async def test_the_config_says_of_tensors_what_the_metadata_says(client: httpx.AsyncClient) -> None:
    metadata, config = (await client.get(MODEL)).json(), (await client.get(MODEL + "/config")).json()
    assert (config["name"], config["max_batch_size"]) == ("tiny", 0)  # 0: dims have every dimension
    for of_config, of_metadata in (("input", "inputs"), ("output", "outputs")):
        assert [(each["name"], each["dims"]) for each in config[of_config]] == [
            (each["name"], each["shape"]) for each in metadata[of_metadata]
        ]
    types = {each["name"]: each["data_type"] for each in [*config["input"], *config["output"]]}
    assert (types["image"], types["probabilities"], types["mmacs"], types["degraded"]) == (
        "TYPE_STRING", "TYPE_FP32", "TYPE_FP64", "TYPE_BOOL"
    )  # fmt: skip
    assert (await client.get(MODEL + "/versions/1/config")).json() == config


@pytest.mark.parametrize("path", ["/v2/models/huge/stats", "/v2/models/huge/config", MODEL + "/versions/2/stats"])
async def test_what_is_not_served_has_none(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


async def test_statistics_count_images_computed_cached_and_failed(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], make_jpeg: Callable[[int], bytes]
) -> None:
    async with connect(make_app(cache_entries=8)) as client:
        before = (await client.get(MODEL + "/stats")).json()["model_stats"][0]
        assert (before["inference_count"], before["execution_count"], before["last_inference"]) == (0, 0, 0)
        for seed in (1, 2, 2):
            await client.post("/classify?threshold=1", content=make_jpeg(seed), headers=RAW)
        await client.post("/classify", content=b"no image", headers=RAW)
        answer = (await client.get(MODEL + "/stats")).json()
        assert (await client.get("/v2/models/stats")).json() == answer
        assert (await client.get(MODEL + "/versions/1/stats")).json() == answer
    told = answer["model_stats"][0]
    assert (told["name"], told["version"]) == ("tiny", "1")
    assert (told["inference_count"], told["execution_count"]) == (2, 4)  # each image in two stages
    done = told["inference_stats"]
    counts = {name: done[name]["count"] for name in done}
    assert counts == {
        "success": 3, "fail": 1, "queue": 2, "compute_input": 2, "compute_infer": 2, "compute_output": 2,
        "cache_hit": 1, "cache_miss": 2,
    }  # fmt: skip
    assert done["success"]["ns"] > done["compute_infer"]["ns"] > 0
    assert done["compute_input"]["ns"] > 0
    assert told["last_inference"] > 1.7e12
