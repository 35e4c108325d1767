"""Models of one, two and three stages over HTTP: names, fields and labels follow the stages."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.anyio

RAW = {"Content-Type": "image/jpeg"}
STAGES = {"single": ["single"], "tiny": ["low", "high"], "deep": ["low", "middle", "high"]}


@pytest.fixture(scope="module")
async def server(
    make_app: Callable[..., FastAPI],
    connect: Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]],
    cascades: Path,
) -> AsyncIterator[httpx.AsyncClient]:
    """One server of all three; every exited image is audited."""
    app = make_app(model_store=cascades, models=("single", "deep"), audit_probability=1.0, cache_entries=1000)
    async with connect(app) as client:
        yield client


@pytest.fixture(params=list(STAGES))
def name(request: pytest.FixtureRequest) -> str:
    """A model."""
    return str(request.param)


async def ask(server: httpx.AsyncClient, image: bytes, **query: str | float) -> dict[str, Any]:
    """The answer to one photograph."""
    response = await server.post("/classify", content=image, headers=RAW, params={"passes": "true", **query})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    header = [each.split(";dur=")[0] for each in response.headers["Server-Timing"].split(", ")]
    assert header == list(answer["timing_ms"])
    return answer


async def test_image_that_nothing_is_sure_of_ends_at_the_last_stage(
    server: httpx.AsyncClient, name: str, make_jpeg: Callable[[int], bytes]
) -> None:
    stages = STAGES[name]
    answer = await ask(server, make_jpeg(100), model=name, threshold=1)
    assert (answer["exit"], answer["reason"]) == (stages[-1], "escalated" if len(stages) > 1 else "only")
    assert list(answer["timing_ms"]) == ["decode", "queue", *stages, "total"]
    assert all(answer["timing_ms"][stage] > 0 for stage in stages)
    assert list(answer["passes"]) == stages
    assert answer["passes"][stages[-1]] == answer["top_k"]
    models = {model["name"]: model for model in (await server.get("/models")).json()["models"]}
    assert answer["mmacs"] == pytest.approx(sum(stage["mmacs"] for stage in models[name]["stages"]))


async def test_image_that_everything_is_sure_of_ends_at_the_first_stage(
    server: httpx.AsyncClient, name: str, make_jpeg: Callable[[int], bytes]
) -> None:
    first, *later = STAGES[name]
    answer = await ask(server, make_jpeg(101), model=name, threshold=0)
    assert (answer["exit"], answer["reason"]) == (first, "confident" if later else "only")
    assert answer["passes"] == {first: answer["top_k"], **dict.fromkeys(later)}
    assert [answer["timing_ms"][stage] for stage in later] == [0] * len(later)
    models = {model["name"]: model for model in (await server.get("/models")).json()["models"]}
    assert answer["mmacs"] == models[name]["low_mmacs"]


async def test_image_may_end_between_the_first_and_the_last_stage(
    server: httpx.AsyncClient, make_jpeg: Callable[[int], bytes]
) -> None:
    for seed in range(200, 300):
        every = (await ask(server, make_jpeg(seed), model="deep", threshold=1))["passes"]
        low, middle = every["low"][0]["score"], every["middle"][0]["score"]
        if low < middle - 0.01:
            break
    else:
        pytest.fail("the second stage is nowhere surer than the first")
    again = make_jpeg(seed) + b"\0"  # the same image under another key of the cache
    answer = await ask(server, again, model="deep", threshold=(low + middle) / 2)
    assert (answer["exit"], answer["reason"]) == ("middle", "confident")
    assert answer["confidence"] == pytest.approx(middle)
    assert answer["passes"] == {**every, "high": None}
    assert answer["top_k"] == every["middle"]
    assert answer["timing_ms"]["high"] == 0
    assert answer["timing_ms"]["middle"] > 0


async def test_answer_from_the_cache_is_the_same(
    server: httpx.AsyncClient, name: str, make_jpeg: Callable[[int], bytes]
) -> None:
    computed, cached = [await ask(server, make_jpeg(102), model=name, threshold=1) for _ in range(2)]
    assert (cached["exit"], cached["reason"], cached["mmacs"]) == (computed["exit"], "cached", 0)
    for field in ("label", "top_k", "passes", "confidence", "threshold"):
        assert cached[field] == computed[field]


async def test_stats_count_what_waits_for_each_stage(
    server: httpx.AsyncClient, name: str, make_jpeg: Callable[[int], bytes]
) -> None:
    await ask(server, make_jpeg(104), model=name)
    stats = (await server.get("/stats", params={"model": name})).json()
    in_flight = {"images_in_flight": 0, "bytes_in_flight": 0}
    assert stats["queue"] == {**dict.fromkeys(STAGES[name], 0), **in_flight}
    assert stats["time"]["single_scale_ms"] > 0


async def test_metrics_are_labelled_with_the_stages(
    server: httpx.AsyncClient, name: str, make_jpeg: Callable[[int], bytes]
) -> None:
    answer = await ask(server, make_jpeg(103), model=name, threshold=1)
    series: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families((await server.get("/metrics")).text):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(sample.labels)
    model = f"{name}/1"
    exits = {labels["exit"] for labels in series["lowfirst_images_total"] if labels["model"] == model}
    assert answer["exit"] in exits
    assert exits == set(STAGES[name])
    for gauge in ("queue_depth", "queued_seconds"):
        assert {labels["stage"] for labels in series[f"lowfirst_{gauge}"]} == {"single", "low", "middle", "high"}
    computed = {labels["stage"] for labels in series["lowfirst_multiply_adds_total"] if labels["model"] == model}
    assert computed - {"audit"} == set(STAGES[name])


async def test_preview_and_threshold_are_of_every_stage(server: httpx.AsyncClient, name: str) -> None:
    preview = (await server.get("/config/threshold/preview", params={"model": name, "threshold": 0.6})).json()
    predicted, stages = preview["predicted"], STAGES[name]
    assert len(predicted["ends"]) == len(stages)
    assert sum(predicted["ends"]) == pytest.approx(1)
    assert predicted["exit_rate"] == pytest.approx(sum(predicted["ends"][:-1]))
    assert predicted["mean_ms"] > 0
    if len(stages) == 1:
        assert (predicted["agreement_at_least"], predicted["accuracy_drop_at_most"]) == (1, 0)
        assert predicted["saved"] == pytest.approx(0)


async def test_single_stage_keeps_every_promise(server: httpx.AsyncClient) -> None:
    for goal in ({"min_agreement": 1}, {"max_accuracy_drop": 0}):
        answer = await server.patch("/config/threshold", params={"model": "single"}, json=goal)
        assert answer.status_code == 200, answer.text
        assert answer.json()["predicted"]["agreement"] == 1


async def test_inference_protocol_tells_the_furthest_stage(
    server: httpx.AsyncClient, name: str, make_jpeg: Callable[[int], bytes]
) -> None:
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [b64encode(make_jpeg(104)).decode()]}
    said = []
    for threshold in (0, 1):
        asked = {"inputs": [image], "parameters": {"threshold": threshold}}
        response = await server.post(f"/v2/models/{name}/infer", json=asked)
        assert response.status_code == 200, response.text
        said.append(response.json()["parameters"]["exit"])
    assert said == [STAGES[name][0], STAGES[name][-1]]
