"""``/stats``, ``/metrics`` and ``/health/*``: what they tell is what clients saw."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from service.api.direct import DirectRoute
from service.api.routes import classify, inference_protocol
from service.inference.latency import LatencyProfile, LatencyTable

pytestmark = pytest.mark.anyio

RAW = {"Content-Type": "image/jpeg"}
LENGTH = "Inference-Header-Content-Length"

Samples = dict[str, list[tuple[dict[str, str], float]]]


async def scrape(client: httpx.AsyncClient) -> Samples:
    """Every sample of ``/metrics`` by its name."""
    response = await client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    samples: Samples = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples of that name with these labels."""
    return sum(value for found, value in samples.get(name, []) if labels.items() <= found.items())


async def classify_many(
    client: httpx.AsyncClient, make_jpeg: Callable[[int], bytes], count: int
) -> list[dict[str, Any]]:
    """Answers to ``count`` photographs."""
    return [(await client.post("/classify", content=make_jpeg(seed), headers=RAW)).json() for seed in range(count)]


async def audited(client: httpx.AsyncClient, count: int) -> dict[str, Any]:
    """``audit`` of ``/stats`` once so many images are audited: after their answers, when nothing else is to do."""
    async with asyncio.timeout(30):
        while (audit := (await client.get("/stats")).json()["audit"])["images"] < count:
            await asyncio.sleep(0)
    return dict(audit)


async def test_counters_agree_with_what_the_client_counted(
    fresh: httpx.AsyncClient, make_jpeg: Callable[[int], bytes]
) -> None:
    answers = await classify_many(fresh, make_jpeg, 40)
    exits = sum(answer["exit"] == "low" for answer in answers)
    assert 0 < exits < 40
    samples = await scrape(fresh)
    images = total(samples, "lowfirst_images_total", model="tiny/1")
    assert (images, total(samples, "lowfirst_images_total", exit="low", reason="confident")) == (40, exits)
    by_exit = [total(samples, "lowfirst_image_seconds_count", model="tiny/1", exit=name) for name in ("low", "high")]
    assert by_exit == [exits, 40 - exits]
    mean_mmacs = sum(answer["mmacs"] for answer in answers) / 40
    assert total(samples, "lowfirst_multiply_adds_total") / images / 1e6 == pytest.approx(mean_mmacs, rel=1e-6)


async def test_stats_agree_with_what_the_client_counted(
    fresh: httpx.AsyncClient, make_jpeg: Callable[[int], bytes]
) -> None:
    answers = await classify_many(fresh, make_jpeg, 10)
    stats = (await fresh.get("/stats")).json()
    assert stats["images"] == 10
    assert stats["exit_rate"] == sum(answer["exit"] == "low" for answer in answers) / 10
    assert stats["mean_mmacs"] == pytest.approx(sum(answer["mmacs"] for answer in answers) / 10)
    assert stats["latency_ms"]["p99"] == max(answer["timing_ms"]["total"] for answer in answers)


async def test_stats_of_an_unused_server_have_every_field(fresh: httpx.AsyncClient) -> None:
    stats = (await fresh.get("/stats")).json()
    assert stats["model"] == {"name": "tiny", "version": 1}
    assert (stats["runtime"], stats["precision"], stats["device"]) == ("eager", "float32", "cpu")
    assert (stats["threshold"], stats["config_version"], stats["images"]) == (0.65, 1, 0)
    assert stats["effective_threshold"] == 0.65
    audit = stats["audit"]
    assert (audit["images"], audit["disagreements"]) == (0, 0)
    known = ("disagreement", "disagreement_at_most", "overall_at_most", "promise_kept")
    assert [audit[name] for name in known] == [None] * len(known)
    assert (stats["exit_rate"], stats["mean_mmacs"], stats["images_per_second"]) == (None, None, 0)
    assert stats["requests_per_second"] == stats["images_per_second"]
    assert stats["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    assert stats["queue"] == {"low": 0, "high": 0, "images_in_flight": 0, "bytes_in_flight": 0}
    assert 0 < stats["low_mmacs"] < stats["single_scale_mmacs"]
    assert stats["time"]["images"] == 0
    unknown = ("mean_ms", "single_scale_ms", "saved", "cost_per_million", "single_scale_cost_per_million")
    assert [stats["time"][name] for name in unknown] == [None] * len(unknown)


async def test_time_spent_agrees_with_the_counters(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], make_jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    profile = tmp_path / "profile.json"
    LatencyProfile(LatencyTable(({1: 0.001}, {1: 0.004}), {1: 0.004, 2: 0.005})).write(profile)
    async with connect(make_app(cost_per_hour=0.9, cache_entries=100, profile=profile)) as client:
        await classify_many(client, make_jpeg, 10)
        await classify_many(client, make_jpeg, 10)  # from the cache, for nothing
        spent = (await client.get("/stats")).json()["time"]
        samples = await scrape(client)
    assert samples["lowfirst_cost_per_hour"] == [({}, 0.9)]
    computed = total(samples, "lowfirst_compute_seconds_sum")
    single_scale = total(samples, "lowfirst_single_scale_compute_seconds_total", model="tiny/1")
    assert spent["images"] == 10
    assert spent["mean_ms"] == pytest.approx(1e3 * computed / 10)
    assert single_scale == pytest.approx(10 * 0.004)  # one at a time
    assert spent["single_scale_ms"] == pytest.approx(4)
    assert spent["saved"] == pytest.approx(1 - computed / single_scale)
    assert spent["cost_per_million"] == pytest.approx(0.9 * 1e6 * computed / 10 / 3600)
    assert spent["single_scale_cost_per_million"] == pytest.approx(0.9 * 1e6 * single_scale / 10 / 3600)


async def test_gauges_follow_the_config(fresh: httpx.AsyncClient) -> None:
    await fresh.patch("/config/threshold", json={"threshold": 0.25})
    samples = await scrape(fresh)
    assert samples["lowfirst_threshold"] == [({"model": "tiny/1"}, 0.25)]
    assert samples["lowfirst_effective_threshold"] == [({"model": "tiny/1"}, 0.25)]
    assert samples["lowfirst_feature_bytes"] == [({}, 0)]
    assert samples["lowfirst_cost_per_hour"] == [({}, 0)]
    assert samples["lowfirst_config_version"] == [({}, 2)]
    assert samples["lowfirst_images_in_flight"] == [({}, 0)]
    assert {labels["stage"] for labels, _ in samples["lowfirst_queue_depth"]} == {"low", "high"}


async def test_audits_are_told_once_they_ran(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], make_jpeg: Callable[[int], bytes]
) -> None:
    async with connect(make_app(audit_probability=1)) as client:
        await client.patch("/config/threshold", json={"threshold": 0})
        answers = await classify_many(client, make_jpeg, 20)
        assert {answer["exit"] for answer in answers} == {"low"}
        audit = await audited(client, 20)
        samples = await scrape(client)
        await client.patch("/config/threshold", json={"threshold": 1})
        nothing_exits = (await client.get("/stats")).json()["audit"]
    disagreements = total(samples, "lowfirst_audit_disagreements_total", model="tiny/1")
    assert (audit["images"], audit["disagreements"]) == (20, disagreements)
    assert audit["disagreement"] == disagreements / 20
    assert 0 < audit["disagreement"] <= audit["disagreement_at_most"] <= 1
    assert total(samples, "lowfirst_multiply_adds_total", stage="audit") > 0
    assert audit["overall_at_most"] == audit["disagreement_at_most"]  # all of them exit
    assert (nothing_exits["images"], nothing_exits["disagreement_at_most"]) == (0, None)
    assert (nothing_exits["overall_at_most"], nothing_exits["allowed"], nothing_exits["promise_kept"]) == (0, 0, True)


async def test_one_image_that_escalates_shows_nothing_of_the_promise(fresh: httpx.AsyncClient, jpeg: bytes) -> None:
    await fresh.patch("/config/threshold", json={"threshold": 0.99})
    answer = (await fresh.post("/classify", content=jpeg, headers=RAW)).json()
    assert answer["exit"] == "high"
    audit = (await fresh.get("/stats")).json()["audit"]
    assert (audit["overall_at_most"], audit["promise_kept"]) == (None, None)


async def test_audits_tell_whether_the_promise_is_kept(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], make_jpeg: Callable[[int], bytes]
) -> None:
    async with connect(make_app(audit_probability=1)) as client:
        await client.patch("/config/threshold", json={"threshold": 0})
        await classify_many(client, make_jpeg, 20)
        await audited(client, 20)
        await client.patch("/config/threshold", json={"min_agreement": 0})  # every image exits, as before
        audit = (await client.get("/stats")).json()["audit"]
        samples = await scrape(client)
    assert (audit["images"], audit["allowed"], audit["promise_kept"]) == (20, 1, True)
    assert samples["lowfirst_promise_kept"] == [({"model": "tiny/1"}, 1)]


async def test_requests_are_counted_by_route_and_code(fresh: httpx.AsyncClient, jpeg: bytes) -> None:
    await fresh.post("/classify", content=jpeg, headers=RAW)
    await fresh.post("/classify", content=b"no image", headers=RAW)
    await fresh.get("/config/threshold")
    await fresh.get("/nowhere")
    await fresh.get("/nowhere/else")
    samples = await scrape(fresh)
    requests = samples["lowfirst_requests_total"]
    counted = {(labels["route"], labels["code"]): value for labels, value in requests if value}
    assert counted == {
        ("/classify", "200"): 1, ("/classify", "415"): 1, ("/config/threshold", "200"): 1, ("unknown", "404"): 2
    }  # fmt: skip
    assert total(samples, "lowfirst_request_seconds_count", route="/classify") == 2


async def test_every_classifying_route_begins_at_zero(fresh: httpx.AsyncClient) -> None:
    routes = (*classify.router.routes, *inference_protocol.router.routes)
    paths = {route.path for route in routes if isinstance(route, DirectRoute)}
    samples = await scrape(fresh)
    begun = {(labels["route"], labels["code"]): value for labels, value in samples["lowfirst_requests_total"]}
    assert begun == {(path, code): 0 for path in paths for code in ("200", "429", "500", "503", "504")}


async def test_each_image_that_failed_is_counted_by_its_error_in_a_batch_too(
    fresh: httpx.AsyncClient, jpeg: bytes
) -> None:
    parts = [jpeg, b"no image", b"", b"nor this", jpeg]
    batch = await fresh.post("/classify/batch", files=[("image", (None, part)) for part in parts])
    assert (await fresh.post("/classify", content=b"no image", headers=RAW)).status_code == 415
    late = await fresh.post("/classify/batch?deadline_ms=0.0001", files=[("image", (None, jpeg))] * 50)
    refused = await fresh.post("/v2/models/tiny/infer", content=b"no image", headers={LENGTH: "0"})
    errors = [
        result["error"]["code"] for each in (batch, late) for result in each.json()["results"] if "error" in result
    ]
    assert "deadline_passed" in errors
    assert refused.status_code == 415
    counted = {labels["code"]: value for labels, value in (await scrape(fresh))["lowfirst_image_errors_total"] if value}
    assert counted == Counter([*errors, "unsupported_image", "unsupported_image"])


async def test_a_cached_answer_costs_nothing_and_says_so(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    async with connect(make_app(cache_entries=4)) as client:
        computed, cached = [(await client.post("/classify", content=jpeg, headers=RAW)).json() for _ in range(2)]
        samples = await scrape(client)
    assert (cached["cached"], cached["mmacs"], cached["reason"]) == (True, 0, "cached")
    assert cached["top_k"] == computed["top_k"]
    assert total(samples, "lowfirst_cache_requests_total", result="hit") == 1
    assert total(samples, "lowfirst_multiply_adds_total") / 1e6 == pytest.approx(computed["mmacs"], rel=1e-6)


async def test_a_live_server_is_alive_and_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/live")).json() == {"status": "ok"}
    assert (await client.get("/health/ready")).json() == {"status": "ok"}


async def test_a_server_is_not_ready_before_it_is_warm_nor_once_it_drains(
    make_app: Callable[..., FastAPI],
    connect: Callable[..., Any],
    jpeg: bytes,
    error_of: Callable[..., dict[str, Any]],
) -> None:
    app = make_app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as early:
        assert "being loaded" in error_of(await early.get("/health/ready"), 503, "unavailable")["message"]
        error_of(await early.post("/classify", content=jpeg, headers=RAW), 503, "unavailable")
        assert (await early.get("/health/live")).status_code == 200
    async with connect(app) as client:
        app.state.parts.models.drain()
        assert "stopping" in error_of(await client.get("/health/ready"), 503, "unavailable")["message"]
        assert (await client.post("/classify", content=jpeg, headers=RAW)).status_code == 200
