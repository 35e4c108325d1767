"""The composition root: what an app is made of, and that importing makes nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.inference.latency import LatencyProfile, LatencyTable

RAW = {"Content-Type": "image/jpeg"}
ROUTES = {
    "/calibration/live": {"get"},
    "/classify": {"post"},
    "/classify/batch": {"post"},
    "/classify/json": {"post"},
    "/config": {"get"},
    "/config/model": {"get", "patch"},
    "/config/threshold": {"get", "patch"},
    "/config/threshold/preview": {"get"},
    "/feedback": {"post"},
    "/models": {"get"},
    "/stats": {"get"},
    "/metrics": {"get"},
    "/metrics/targets": {"get"},
    "/health/live": {"get"},
    "/health/ready": {"get"},
    "/v2": {"get"},
    "/v2/health/live": {"get"},
    "/v2/health/ready": {"get"},
    "/v2/models/stats": {"get"},
    "/v2/models/{model}": {"get"},
    "/v2/models/{model}/config": {"get"},
    "/v2/models/{model}/stats": {"get"},
    "/v2/models/{model}/ready": {"get"},
    "/v2/models/{model}/infer": {"post"},
    "/v2/models/{model}/versions/{version}": {"get"},
    "/v2/models/{model}/versions/{version}/config": {"get"},
    "/v2/models/{model}/versions/{version}/stats": {"get"},
    "/v2/models/{model}/versions/{version}/ready": {"get"},
    "/v2/models/{model}/versions/{version}/infer": {"post"},
}


def run(code: str) -> str:
    """What a new interpreter prints, with every setting wrong."""
    environment = {"LOWFIRST_PORT": "none", "LOWFIRST_MODEL": "none", "LOWFIRST_MODEL_STORE": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_no_torch() -> None:
    assert run("import sys, service; print([m for m in sys.modules if m.startswith(('torch', 'fastapi'))])") == "[]"


def test_importing_the_app_builds_nothing_and_loads_no_large_package() -> None:
    code = """
import sys, threading, service.app
from prometheus_client import REGISTRY
print(threading.active_count(), [f.name for f in REGISTRY.collect() if f.name.startswith("lowfirst")])
print([name for name, value in vars(service.app).items() if type(value).__module__.startswith(("fastapi", "service"))])
print([name for name in ("torchvision", "torch._dynamo", "openvino", "scipy.stats") if name in sys.modules])
"""
    assert run(code).splitlines() == ["1 []", "[]", "[]"]  # and imports nothing that takes seconds and serves little


@pytest.mark.anyio
async def test_two_apps_live_in_one_process(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    async with connect(make_app()) as one, connect(make_app()) as other:
        await one.patch("/config/threshold", json={"threshold": 0})
        await one.post("/classify", content=jpeg, headers=RAW)
        await one.post("/classify", content=jpeg, headers=RAW)
        await other.post("/classify", content=jpeg, headers=RAW)
        thresholds = [(await app.get("/config/threshold")).json()["threshold"] for app in (one, other)]
        images = [(await app.get("/stats")).json()["images"] for app in (one, other)]
        metrics = [(await app.get("/metrics")).text for app in (one, other)]
    assert (thresholds, images) == ([0, 0.65], [2, 1])
    assert 'lowfirst_requests_total{code="200",route="/classify"} 2.0' in metrics[0]
    assert 'lowfirst_requests_total{code="200",route="/classify"} 1.0' in metrics[1]


@pytest.mark.anyio
async def test_openapi_lists_every_route(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    assert schema["openapi"].startswith("3.")
    assert {path: set(methods) for path, methods in schema["paths"].items()} == ROUTES
    text = str(schema)
    for reference in set(re.findall(r"#/components/schemas/(\w+)", text)):
        assert reference in schema["components"]["schemas"]
    assert "#/$defs" not in text


@pytest.mark.anyio
async def test_openapi_tells_the_one_shape_of_errors_and_the_forms_of_bodies(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    for path, operations in schema["paths"].items():
        shape = "ProtocolError" if path.startswith("/v2") else "ErrorAnswer"
        for operation in operations.values():
            error = operation["responses"]["default"]["content"]["application/json"]["schema"]
            assert error == {"$ref": f"#/components/schemas/{shape}"}
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    bodies = {path: schema["paths"][path]["post"]["requestBody"]["content"] for path in ROUTES if "classify" in path}
    assert {path: list(forms) for path, forms in bodies.items()} == {  # one each: generated clients take but one
        "/classify": ["application/octet-stream"],
        "/classify/json": ["application/json"],
        "/classify/batch": ["multipart/form-data"],
    }
    patch = schema["paths"]["/config/threshold"]["patch"]["requestBody"]["content"]["application/json"]["schema"]
    assert patch == {"$ref": "#/components/schemas/ThresholdPatch"}
    assert set(schema["components"]["schemas"]["ThresholdPatch"]["properties"]) == {
        "threshold", "max_mean_mmacs", "max_mean_ms", "min_agreement", "max_accuracy_drop", "floor", "table"
    }  # fmt: skip


@pytest.mark.anyio
async def test_operations_have_names_and_say_which_errors_they_may_answer_with(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    operations = {path: operation for path, each in paths.items() for operation in each.values()}
    names = [operation["operationId"] for each in paths.values() for operation in each.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+){0,2}", name) for name in names)
    for path in ("/classify", "/classify/json", "/classify/batch", "/v2/models/{model}/infer"):
        assert {"200", "400", "401", "413", "415", "422", "429", "503", "504"} <= set(operations[path]["responses"])
        assert "Retry-After" in operations[path]["responses"]["429"]["headers"]


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_documentation_asks_no_other_host(client: httpx.AsyncClient, path: str) -> None:
    page = (await client.get(path)).text
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page)
    assets = re.findall(r'(?:src|href)="(/[^"]+)"', page)
    assert assets
    for asset in assets:
        assert (await client.get(asset)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("single_ms", "said"),
    [(3.0, "it pays if 50% or more do"), (0.5, "it does not pay at any exit rate"), (4.9, None)],
    ids=["fewer exit than pay for the first stage", "it never pays", "it pays"],
)
async def test_start_up_says_where_the_cascade_does_not_pay(
    make_app: Callable[..., FastAPI],
    connect: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    single_ms: float,
    said: str | None,
) -> None:
    LatencyProfile(LatencyTable(({1: 0.001}, {1: 0.004}), {1: single_ms / 1e3})).write(tmp_path / "profile.json")
    async with connect(make_app(profile=tmp_path / "profile.json")) as client:
        predicted = (await client.get("/config/threshold")).json()["predicted"]
    lines = [record.getMessage() for record in caplog.records if "does not pay" in record.getMessage()]
    assert (predicted["saved"] < 0) == (said is not None)
    if said is None:
        assert lines == []
        return
    (line,) = lines
    assert line.startswith(f"tiny/1 does not pay here at threshold 0.65: {predicted['mean_ms']:.3f} ms of compute")
    assert f"{single_ms:.3f} with the single-scale network. {100 * predicted['ends'][0]:.0f}% of the images" in line
    assert said in line
    assert line.endswith("serve the single-scale network instead")
