"""Request ids, and what is counted when an answer could not be given as usual."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.errors import LowfirstError
from service.model_spec import ModelSpec
from service.store import ModelStore

pytestmark = pytest.mark.anyio


class FailingStore(ModelStore):
    """A store on a disk that fails."""

    def specs(self, on_broken: Callable[[str, LowfirstError], None]) -> list[ModelSpec]:  # noqa: ARG002
        """Raises what nobody expects."""
        raise RuntimeError("disk 7 of /srv/secret is on fire")


@pytest.mark.parametrize("path", ["/health/live", "/nowhere", "/classify", "/docs"])
async def test_a_request_id_is_echoed(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"X-Request-ID": "trace:7_a.b-c"})
    assert response.headers.get_list("X-Request-ID") == ["trace:7_a.b-c"]


@pytest.mark.parametrize("given", [None, b"", b"a b", b"a" * 129, b"a;b", b"<script>", "é".encode()])
async def test_a_missing_or_malformed_request_id_is_made_anew(client: httpx.AsyncClient, given: bytes | None) -> None:
    headers = {} if given is None else {b"X-Request-ID": given}
    first, second = [(await client.get("/nowhere", headers=headers)).headers["X-Request-ID"] for _ in range(2)]
    assert first != second
    assert len(first) == len(second) == 32


async def test_an_answer_names_the_request(client: httpx.AsyncClient, jpeg: bytes) -> None:
    headers = {"Content-Type": "image/jpeg", "X-Request-ID": "mine"}
    assert (await client.post("/classify", content=jpeg, headers=headers)).json()["request_id"] == "mine"


async def test_an_unknown_error_tells_only_the_request_id(
    make_app: Callable[..., FastAPI],
    connect: Callable[..., Any],
    error_of: Callable[..., dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    app = make_app()
    app.state.parts.models.store = FailingStore(tmp_path)
    async with connect(app) as client:
        response = await client.get("/models", headers={"X-Request-ID": "trace-7"})
        error = error_of(response, 500, "internal")
        metrics = (await client.get("/metrics")).text
    assert error == {
        "code": "internal", "message": "internal error", "field": None, "value": None, "bound": None,
        "request_id": "trace-7",
    }  # fmt: skip
    assert "disk 7" in caplog.text
    assert "trace-7" in caplog.text
    assert 'lowfirst_requests_total{code="500",route="/models"} 1.0' in metrics
