"""What people and machines watch: ``/stats``, ``/metrics``, ``/health/*``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.api.dependencies import Injected
from service.api.schemas import (
    AuditState,
    Health,
    LatencyMs,
    MetricsTarget,
    ModelName,
    ModelQuery,
    QueueState,
    StatsAnswer,
    TimeState,
)
from service.engine.audit import Audit
from service.errors import NotFound

router = APIRouter(tags=["observe"])


@router.get("/stats")
async def stats(parts: Injected, query: Annotated[ModelQuery, Query()]) -> StatsAnswer:
    """A snapshot of one served model, for people."""
    engine = parts.models.find(query.model)
    spec, predictor = engine.spec, engine.predictor
    summary = engine.recent.summary()
    asked = engine.asked
    return StatsAnswer(
        model=ModelName(name=spec.name, version=spec.version),
        runtime=predictor.runtime,
        precision=predictor.precision,
        device=str(predictor.device),
        threshold=asked.threshold,
        effective_threshold=engine.effective_threshold,
        config_version=parts.models.config.version,
        images=summary.images,
        exit_rate=summary.exit_rate,
        mean_mmacs=summary.mean_mmacs,
        low_mmacs=spec.mmacs[0],
        single_scale_mmacs=spec.single_scale_mmacs,
        time=TimeState.of(engine.time_spent(), engine.computed, parts.settings.cost_per_hour),
        requests_per_second=summary.images_per_second,
        latency_ms=LatencyMs(**summary.latency_ms),
        queue=QueueState(
            **engine.queue_depth(),
            images_in_flight=parts.admission.images,
            bytes_in_flight=parts.admission.bytes,
        ),
        audit=_audit(engine.audit()),
    )


def _audit(audit: Audit) -> AuditState:
    return AuditState(
        images=audit.images,
        disagreements=audit.disagreements,
        disagreement=audit.disagreement,
        disagreement_at_most=audit.disagreement_at_most,
        overall_at_most=audit.overall_at_most,
        allowed=None if audit.promised is None else 1 - audit.promised,
        promise_kept=audit.promise_kept,
    )


@router.get("/metrics", response_class=Response)
async def metrics(parts: Injected) -> Response:
    """Everything, for Prometheus."""
    return Response(generate_latest(parts.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/metrics/targets")
async def targets(parts: Injected) -> list[MetricsTarget]:
    """Where each live replica's own metrics are, for Prometheus' ``http_sd_configs``."""
    if parts.settings.metrics_port is None:
        raise NotFound("LOWFIRST_METRICS_PORT is unset: no replica has metrics at an address of its own")
    return [
        MetricsTarget(targets=[each.address], labels={"replica": each.replica}) for each in await parts.targets.listed()
    ]


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live")
async def live() -> Health:
    """Whether the process answers."""
    return Health(status="ok")


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready")
async def ready(parts: Injected) -> Health:
    """Whether work may be sent: model loaded and warmed up, engine alive, not stopping. Else 503, saying why."""
    parts.check_ready()
    return Health(status="ok")
