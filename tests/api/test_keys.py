"""Keys: who may classify, read and change, on which address; and that no key is ever told."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from service.api.keys import Keys
from service.errors import LowfirstError
from service.settings import Settings

API = "api-key-0123456789"
ADMIN = "admin-key-0123456789"
RAW = {"Content-Type": "image/jpeg"}

CLASSIFY = [("POST", "/classify"), ("POST", "/classify/batch"), ("POST", "/v2/models/tiny/infer")]
READ = [("GET", "/config"), ("GET", "/config/threshold"), ("GET", "/stats"), ("GET", "/models"), ("GET", "/v2")]
CHANGE = [("PATCH", "/config/threshold"), ("PATCH", "/config/model"), ("POST", "/config"), ("DELETE", "/models")]
OPEN = [
    ("GET", path)
    for path in (
        "/",
        "/health/live",
        "/health/ready",
        "/v2/health/live",
        "/metrics",
        "/metrics/targets",
        "/docs",
        "/openapi.json",
    )
]


def refusal(settings: dict[str, Any], method: str, path: str, key: str | None) -> int | None:
    """The status of what a server with these settings says to a request with that key; None: it is let through."""
    headers = [] if key is None else [(b"x-api-key", key.encode())]
    error: LowfirstError | None = Keys(Settings(**settings)).refusal(method, path, headers)
    return None if error is None else error.status


def test_without_keys_a_server_on_loopback_allows_everything() -> None:
    for host, (method, path) in itertools.product(["127.0.0.1", "127.0.0.9", "::1", "localhost"], CHANGE + READ + OPEN):
        assert refusal({"host": host}, method, path, None) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org", ""])
def test_without_an_admin_key_an_exposed_server_allows_no_change(host: str) -> None:
    for settings, key in (({}, None), ({}, ADMIN), ({"api_key": API}, API)):
        for method, path in CHANGE:
            assert refusal({"host": host, **settings}, method, path, key) == 403
    for method, path in CLASSIFY + READ + OPEN:
        assert refusal({"host": host}, method, path, None) is None


@pytest.mark.parametrize(
    ("settings", "requests", "key", "status"),
    [
        ({"api_key": API}, CLASSIFY + READ, None, 401),
        ({"api_key": API}, CLASSIFY + READ, "wrong", 401),
        ({"api_key": API}, CLASSIFY + READ, "", 401),
        ({"api_key": API}, CLASSIFY + READ, API, None),
        ({"api_key": API}, CHANGE, API, 403),  # a proxy on this machine may expose it
        ({"api_key": API, "admin_key": ADMIN}, CLASSIFY + READ + CHANGE, ADMIN, None),
        ({"api_key": API, "admin_key": ADMIN}, CHANGE, API, 403),
        ({"api_key": API, "admin_key": ADMIN}, CHANGE, "wrong", 401),
        ({"api_key": API, "admin_key": ADMIN}, CHANGE, None, 401),
        ({"admin_key": ADMIN}, CLASSIFY + READ, None, None),
        ({"admin_key": ADMIN}, CLASSIFY + READ, "wrong", None),
        ({"admin_key": ADMIN}, CHANGE, None, 401),
        ({"api_key": API, "admin_key": ADMIN}, OPEN, None, None),
        ({"api_key": API, "admin_key": ADMIN}, OPEN, "wrong", None),
        ({"api_key": API, "metrics_key_required": True}, [("GET", "/metrics")], None, 401),
        ({"api_key": API, "metrics_key_required": True}, [("GET", "/metrics/targets")], None, 401),
        ({"api_key": API, "metrics_key_required": True}, [("GET", "/metrics")], API, None),
        ({"admin_key": ADMIN, "metrics_key_required": True}, [("GET", "/metrics")], None, 401),
        ({"admin_key": ADMIN, "metrics_key_required": True}, [("GET", "/metrics")], ADMIN, None),
        ({"api_key": API}, [("GET", "/nowhere"), ("GET", "/healthy"), ("GET", "/docs2"), ("GET", "//")], None, 401),
    ],
)
def test_each_request_needs_its_key(
    settings: dict[str, Any], requests: list[tuple[str, str]], key: str | None, status: int | None
) -> None:
    for method, path in requests:
        assert refusal(settings, method, path, key) == status, (method, path)


@pytest.mark.anyio
async def test_keys_are_asked_for_in_the_one_shape_and_counted(
    make_app: Callable[..., FastAPI],
    connect: Callable[..., Any],
    error_of: Callable[..., dict[str, Any]],
    jpeg: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    bearer = {"Authorization": f"Bearer {API}"}
    async with connect(make_app(api_key=API, admin_key=ADMIN)) as client:
        missing = await client.post("/classify", content=jpeg, headers=RAW)
        error_of(missing, 401, "unauthorized")
        assert missing.headers["WWW-Authenticate"] == "Bearer"
        for headers in (bearer, {"authorization": f"bearer  {ADMIN} "}, {"X-API-Key": API}, {"x-api-key": ADMIN}):
            response = await client.post("/classify", content=jpeg, headers={**RAW, **headers})
            assert response.status_code == 200
        proxied = {"Authorization": "Basic dXNlcjpwYXNz", "X-API-Key": API}  # a proxy's own, beside ours
        assert (await client.get("/stats", headers=proxied)).status_code == 200
        for value in ("Bearer", "Bearer ", "Basic " + API, API, "Bearer " + API[:-1], "Bearer " + API + "x"):
            error_of(await client.get("/stats", headers={"Authorization": value}), 401, "unauthorized")
        error_of(await client.get("/stats", headers={b"X-API-Key": "é".encode()}), 401, "unauthorized")
        error_of(await client.patch("/config/threshold", json={"threshold": 0}), 401, "unauthorized")
        error_of(await client.patch("/config/threshold", json={"threshold": 0}, headers=bearer), 403, "forbidden")
        admin = {"X-API-Key": ADMIN}
        assert (await client.patch("/config/threshold", json={"threshold": 0}, headers=admin)).status_code == 200
        assert (await client.get("/config/threshold", headers=bearer)).json()["version"] == 2
        for path in ("/health/live", "/health/ready", "/docs"):
            assert (await client.get(path)).status_code == 200
        metrics = (await client.get("/metrics")).text
    counted = {
        sample.labels["code"]: sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "lowfirst_requests_total" and sample.labels["route"] == "unknown"
    }
    assert counted == {"401": 9.0, "403": 1.0}
    told = caplog.text + metrics + missing.text
    assert API not in told
    assert ADMIN not in told


@pytest.mark.anyio
async def test_an_exposed_server_says_how_to_set_its_keys(
    make_app: Callable[..., FastAPI],
    connect: Callable[..., Any],
    error_of: Callable[..., dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connect(make_app(host="0.0.0.0")) as client:
        error = error_of(await client.patch("/config/threshold", json={"threshold": 0}), 403, "forbidden")
        assert (await client.get("/config")).status_code == 200
    for text in (error["message"], caplog.text):
        assert "set LOWFIRST_ADMIN_KEY" in text
    assert "set LOWFIRST_API_KEY" in caplog.text


@pytest.mark.anyio
async def test_openapi_tells_which_routes_need_a_key(
    client: httpx.AsyncClient, make_app: Callable[..., FastAPI]
) -> None:
    assert "security" not in (await client.get("/openapi.json")).text
    schema = make_app(api_key=API, admin_key=ADMIN).openapi()
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "header"}
    needs = {
        (method, path)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
        if operation.get("security") == [{"bearer": []}, {"header": []}]
    }
    assert {("post", "/classify"), ("patch", "/config/threshold"), ("get", "/stats")} <= needs
    assert not {path for _, path in needs} & {"/metrics", "/health/live", "/health/ready"}


@pytest.mark.anyio
async def test_pages_elsewhere_may_use_the_server_only_when_listed(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], client: httpx.AsyncClient
) -> None:
    origin = {"Origin": "https://shop.example"}
    asked = {**origin, "Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "x-api-key"}
    for response in (await client.get("/stats", headers=origin), await client.options("/stats", headers=asked)):
        assert not [name for name in response.headers if name.startswith("access-control")]
    listed = make_app(cors_origins="https://shop.example, http://localhost:3000", api_key=API)
    async with connect(listed) as other:
        preflight = await other.options("/config/threshold", headers=asked)
        refused = await other.get("/stats", headers=origin)
        foreign = await other.get("/stats", headers={"Origin": "https://shop.example.evil", "X-API-Key": API})
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert refused.status_code == 401  # and the page may read why
    assert refused.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert "X-Request-ID" in refused.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Origin" not in foreign.headers
    assert "Access-Control-Allow-Credentials" not in preflight.headers


@pytest.mark.anyio
async def test_keys_hold_where_the_app_is_mounted_below_a_path(make_app: Callable[..., FastAPI]) -> None:
    outer = FastAPI()
    outer.mount("/config", make_app(api_key=API, admin_key=ADMIN))
    transport = httpx.ASGITransport(outer)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers={"X-API-Key": API}) as client:
        statuses = [
            (await client.request(method, f"/config{path}", headers=headers)).status_code
            for method, path, headers in (
                ("GET", "/health/live", {"X-API-Key": ""}),
                ("GET", "/stats", {"X-API-Key": ""}),
                ("POST", "/classify", {"Content-Type": "text/plain"}),
                ("PATCH", "/config/threshold", {}),
            )
        ]
    assert statuses == [200, 401, 415, 403]
