"""Traces, as a collector receives them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

RAW = {"Content-Type": "image/jpeg"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Receives spans by OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.received: list[ExportTraceServiceRequest] = []

    @property
    def spans(self) -> list[Span]:
        """All that came, earliest first."""
        scopes = (scope for each in self.received for part in each.resource_spans for scope in part.scope_spans)
        return sorted((span for scope in scopes for span in scope.spans), key=lambda span: span.start_time_unix_nano)


class Receiver(BaseHTTPRequestHandler):
    """One post of spans."""

    def do_POST(self) -> None:
        """Keep it."""
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *told: Any) -> None:
        """Nothing."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """One on a free port, which OpenTelemetry's own variables name."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, object]:
    """What a span says of itself."""
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


@pytest.mark.anyio
async def test_a_request_is_a_span_with_its_stages_in_the_trace_of_its_caller(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes, collector: Collector
) -> None:
    async with connect(make_app(traces=True)) as client:
        headers = {**RAW, "traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "trace-7"}
        answer = (await client.post("/classify?threshold=1", content=jpeg, headers=headers)).json()
        for path in ("/health/ready", "/metrics"):
            await client.get(path)
    request, *stages = collector.spans
    (sent,) = collector.received[0].resource_spans
    assert ("service.name", "lowfirst") in [(each.key, each.value.string_value) for each in sent.resource.attributes]
    assert (request.name, request.kind) == ("POST /classify", Span.SpanKind.SPAN_KIND_SERVER)
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(request) == {
        "http.request.method": "POST", "http.route": "/classify", "http.response.status_code": 200,
        "lowfirst.request_id": "trace-7",
    }  # fmt: skip
    assert [span.name for span in stages] == ["decode", "queue", "low", "high"]
    for span in stages:
        assert (span.trace_id, span.parent_span_id) == (request.trace_id, request.span_id)
        took = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        assert took == pytest.approx(answer["timing_ms"][span.name], abs=0.01)
        assert attributes(span)["lowfirst.exit"] == answer["exit"] == "high"
    assert stages[-1].end_time_unix_nano <= request.end_time_unix_nano


@pytest.mark.anyio
async def test_an_image_that_exits_has_no_high_span_and_each_of_a_batch_has_its_own(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes, collector: Collector
) -> None:
    async with connect(make_app(traces=True)) as client:
        await client.post("/classify/batch?threshold=0", files=[("image", jpeg)] * 2)
        await client.post("/classify", content=b"no image", headers=RAW)
    requests = [span for span in collector.spans if span.kind == Span.SpanKind.SPAN_KIND_SERVER]
    stages = [span for span in collector.spans if span.parent_span_id == requests[0].span_id]
    assert sorted(span.name for span in stages) == sorted(["decode", "queue", "low"] * 2)
    assert [attributes(span)["http.response.status_code"] for span in requests] == [200, 415]
    assert len(collector.spans) == 2 + len(stages)


def test_without_the_packages_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["opentelemetry.exporter"] = None
from service.errors import InvalidOption
try:
    import service.api.tracing
except InvalidOption as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "LOWFIRST_TRACES is True; it must be unset without `pip install '.[otel]'`\n"
