"""Where the parts are wired together. Nothing is built on import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

import service
from service.api import error_handlers
from service.api.dependencies import Parts
from service.api.request_context import RequestContext
from service.api.routes import classify, config, console, models, observe
from service.engine.engine import Engine
from service.engine.limits import Limits
from service.errors import BrokenModel
from service.inference.calibration import Calibration
from service.inference.device import cores
from service.inference.latency import LatencyTable
from service.inference.predictor import Predictor
from service.log import logger
from service.metrics import Metrics
from service.settings import Settings
from service.state.base import RuntimeConfig, ThresholdConfig
from service.state.memory import MemoryConfigStore, MemoryResultCache
from service.store import ModelStore


def create_app(settings: Settings) -> FastAPI:
    """The server as an ASGI application; its model is loaded here, warmed up at start-up.

    Raises:
        NotFound, BrokenModel: no such model, or one that cannot be trusted or served.
        InvalidOption: a device, precision or runtime that this machine lacks.
        DataError: a latency profile that cannot be read.
    """
    parts = build_parts(settings)
    profile = _profile(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001
        await parts.engine.start(profile)
        _announce(parts)
        yield
        await parts.engine.close()

    app = FastAPIOffline(
        title="lowfirst",
        version=service.__version__,
        description="Image classification that spends compute only where an image needs it.",
        lifespan=lifespan,
    )
    app.state.parts = parts
    app.add_middleware(RequestContext, metrics=parts.metrics, on_error=error_handlers.unknown)
    error_handlers.install(app)
    for routes in (classify, config, console, models, observe):
        app.include_router(routes.router, responses=error_handlers.RESPONSES)
    return app


def build_parts(settings: Settings) -> Parts:
    """Every part of one server, handed to each other. Raises as ``create_app``."""
    store = ModelStore(settings.model_store)
    predictor = Predictor.load(
        store.find(settings.model), settings.device, settings.precision, settings.runtime, settings.threads
    )
    spec = predictor.spec
    if not predictor.is_multi_scale:
        raise BrokenModel(f"{settings.model} is single-scale: it has no early exit to serve", field="model")
    start = spec.start_threshold(predictor.runtime, predictor.precision)
    config_store = MemoryConfigStore(
        RuntimeConfig(1, {spec.name: ThresholdConfig("threshold", start, start)}, {spec.name: spec.version})
    )
    metrics = Metrics(_registry())
    engine = Engine(
        predictor,
        config_store,
        MemoryResultCache(settings.cache_entries) if settings.cache_entries else None,
        metrics,
        _limits(settings, on_cpu=predictor.device.type == "cpu"),
    )
    calibration = Calibration.of(spec, predictor.runtime, predictor.precision)
    return Parts(settings, store, engine, config_store, calibration, metrics)


def _registry() -> CollectorRegistry:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def _profile(settings: Settings) -> LatencyTable | None:
    return None if settings.profile is None else LatencyTable.read(settings.profile)


def _limits(settings: Settings, on_cpu: bool) -> Limits:
    workers = settings.workers or (max(1, cores() // settings.threads) if on_cpu else 2)
    decoders = settings.decode_threads
    if decoders is None:
        decoders = 0 if on_cpu and workers * settings.threads >= cores() else cores()
    return Limits(
        max_batch_size=settings.max_batch_size,
        max_images_in_flight=settings.max_images_in_flight,
        max_bytes_in_flight=settings.max_bytes_in_flight,
        feature_slots=settings.feature_slots,
        workers=workers,
        decode_threads=decoders,
        audit_probability=settings.audit_probability,
        target_latency=settings.target_latency_ms / 1e3,
        max_queue=settings.max_queue_ms / 1e3,
    )


def _announce(parts: Parts) -> None:
    predictor, spec = parts.engine.predictor, parts.engine.spec
    table = parts.calibration.table if parts.calibration else None
    if table is None:
        logger.warning("%s has no calibration table: what a threshold does is not foretold", spec.name)
    elif (table.runtime, table.precision) != (predictor.runtime, predictor.precision):
        logger.warning(
            "%s was calibrated for %s %s, not for %s %s: predictions are of the former",
            spec.name, table.runtime, table.precision, predictor.runtime, predictor.precision,
        )  # fmt: skip
    logger.info(
        "serving %s/%d on %s in %s, threshold %s",
        spec.name, spec.version, predictor.device, predictor.precision,
        parts.config.current.thresholds[spec.name].threshold,
    )  # fmt: skip
