"""OpenTelemetry traces: one span per request, and child spans for the stages of each image.

Imported only with ``LOWFIRST_TRACES``; the extra ``otel`` installs the packages. OpenTelemetry's own ``OTEL_…``
variables set the destination, by default a collector on this machine, by OTLP over HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import service
from service.api.keys import METRICS, PROBES, is_under
from service.engine.answer import Answer
from service.errors import InvalidOption

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.propagate import extract
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode
except ImportError as error:
    raise InvalidOption("LOWFIRST_TRACES", True, "unset without `pip install '.[otel]'`") from error


class Traces:
    """Creates spans. ``close`` sends the remaining ones."""

    def __init__(self) -> None:
        named = Resource.create({"service.name": "lowfirst", "service.version": service.__version__})
        self._provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer = self._provider.get_tracer("lowfirst", service.__version__)

    def answered(self, answer: Answer) -> None:
        """Create the spans of one image's stages, within the request's span. Called in the request's task.

        An answer only has durations: they are placed end to end before now, with all waiting as one, ``queue``.
        """
        about: dict[str, str | float] = {
            "lowfirst.model": f"{answer.model}/{answer.version}",
            "lowfirst.exit": answer.exit,
            "lowfirst.reason": answer.reason,
            "lowfirst.confidence": answer.confidence,
            "lowfirst.threshold": answer.threshold,
        }
        timing = answer.timing
        spent = {
            "decode": timing.decode,
            "queue": timing.queue,
            **dict(zip(answer.stages, timing.stages, strict=False)),
        }
        parts = {name: round(1e9 * seconds) for name, seconds in spent.items() if seconds}
        start = time.time_ns() - sum(parts.values())
        for name, nanoseconds in parts.items():
            span = self.tracer.start_span(name, start_time=start, attributes=about)
            start += nanoseconds
            span.end(start)

    def watch(self, app: FastAPI) -> None:
        """Add a span to each request of ``app``."""
        app.add_middleware(Traced, traces=self)

    @contextmanager
    def call(self, route: str, headers: Iterable[tuple[bytes, bytes]], request_id: str) -> Iterator[None]:
        """A span for one gRPC call while the block runs, in the trace given by its ``traceparent``."""
        context = extract({name.decode("latin-1"): value.decode("latin-1") for name, value in headers})
        about = {"rpc.system": "grpc", "http.route": route, "lowfirst.request_id": request_id}
        with self.tracer.start_as_current_span(route, context, SpanKind.SERVER, attributes=about):
            yield

    async def close(self) -> None:
        """Send the remaining spans, then stop."""
        await asyncio.to_thread(self._provider.shutdown)


class Traced:
    """ASGI middleware: one span per request, in the trace given by its ``traceparent``. Probes and scrapes have
    none."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self.app = app
        self.tracer = traces.tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or any(is_under(scope["path"], path) for path in (*PROBES, METRICS)):
            await self.app(scope, receive, send)
            return
        context = extract({name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]})
        method = scope["method"]
        with self.tracer.start_as_current_span(method, context, SpanKind.SERVER) as span:
            span.set_attribute("http.request.method", method)
            span.set_attribute("lowfirst.request_id", scope["state"]["request_id"])

            async def send_told(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _tell(span, message["status"])
                await send(message)

            try:
                await self.app(scope, receive, send_told)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)


def _tell(span: Span, code: int) -> None:
    span.set_attribute("http.response.status_code", code)
    if code >= 500:
        span.set_status(Status(StatusCode.ERROR))
