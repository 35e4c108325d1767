"""Monitoring: ``/stats``, ``/metrics``, ``/health/*``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.dependencies import Injected
from service.api.error_responses import Responses, responses
from service.api.live_schemas import DriftAnswer, PeriodState
from service.api.observed import audit_of, latency_ms, periods, time_spent
from service.api.schemas import ModelName, ModelQuery
from service.api.stats_schemas import (
    AuditState,
    BudgetState,
    FeedbackState,
    Health,
    LatencyMs,
    MetricsTarget,
    Processes,
    QueueState,
    StatsAnswer,
    TimeState,
)
from service.calibration.audit import Audit, Budget
from service.errors import NotFound
from service.state.base import Goal

router = APIRouter(tags=["observe"])

TEXT: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/stats", operation_id="get_stats", responses=responses(401, 404, 422))
async def stats(parts: Injected, query: Annotated[ModelQuery, Query()]) -> StatsAnswer:
    """A readable snapshot of one served model."""
    engine = parts.models.find(query.model)
    spec, predictor, asked = engine.spec, engine.predictor, engine.asked
    shares = await parts.observed.shares(engine)
    images = sum(share.images for share in shares)
    audit = audit_of(shares)
    last_minute, since_change = periods(shares)
    labelled = await parts.feedback.labelled(spec.reference)
    return StatsAnswer(
        model=ModelName(name=spec.name, version=spec.version),
        runtime=predictor.runtime,
        precision=predictor.precision,
        device=str(predictor.device),
        threshold=asked.threshold,
        effective_threshold=min(share.effective_threshold for share in shares),
        config_version=parts.models.config.version,
        images=images,
        time=TimeState.of(time_spent(shares), parts.settings.cost_per_hour),
        exit_rate=sum(share.exited for share in shares) / images if images else None,
        mean_mmacs=sum(share.mmacs for share in shares) / images if images else None,
        low_mmacs=spec.mmacs[0],
        single_scale_mmacs=spec.single_scale_mmacs,
        images_per_second=(rate := sum(share.per_second for share in shares)),
        requests_per_second=rate,
        latency_ms=LatencyMs(**latency_ms(shares)),
        queue=QueueState(
            **{stage.name: sum(share.waiting[stage.name] for share in shares) for stage in spec.stages},
            images_in_flight=sum(share.images_in_flight for share in shares),
            bytes_in_flight=sum(share.bytes_in_flight for share in shares),
        ),
        audit=_audit(audit),
        last_minute=PeriodState.of(last_minute),
        since_change=PeriodState.of(since_change),
        budget=None if audit.budget is None else _budget(asked.goal, audit.budget),
        drift=DriftAnswer.of(parts.following.drift_of(engine)),
        feedback=None if labelled is None else FeedbackState.by([stage.name for stage in spec.stages], *labelled),
    )


def _budget(goal: Goal, budget: Budget) -> BudgetState:
    return BudgetState(goal=goal, asked=budget.asked, images=round(budget.images), mean=budget.mean, kept=budget.kept)


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


@router.get("/metrics", operation_id="get_metrics", responses=TEXT | responses(401), response_class=Response)
async def metrics(parts: Injected) -> Response:
    """All metrics, for Prometheus."""
    return Response(await parts.observed.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/metrics/targets", operation_id="list_metrics_targets", responses=responses(401, 404))
async def targets(parts: Injected) -> list[MetricsTarget]:
    """Metrics addresses of all live replicas, for Prometheus' ``http_sd_configs``."""
    if parts.settings.metrics_port is None:
        raise NotFound("LOWFIRST_METRICS_PORT is unset: replicas have no metrics address of their own")
    return [
        MetricsTarget(targets=[each.address], labels={"replica": each.replica}) for each in await parts.targets.listed()
    ]


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", operation_id="live", response_model_exclude_none=True)
async def live() -> Health:
    """Whether the process answers."""
    return Health(status="ok")


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", operation_id="ready", responses=responses(503), response_model_exclude_none=True)
async def ready(parts: Injected) -> Health:
    """Whether the server accepts work: model loaded and warmed up, engine alive, not stopping. Otherwise 503 with the
    reason.

    With several processes one ready process is enough.
    """
    parts.check_ready()
    siblings = parts.siblings
    processes = Processes(ready=siblings.ready, count=siblings.count) if siblings.count > 1 else None
    return Health(status="ok", processes=processes)
