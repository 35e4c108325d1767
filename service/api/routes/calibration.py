"""The calibration table of live traffic."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.api.dependencies import Injected
from service.api.error_responses import responses
from service.api.live_schemas import DriftAnswer, FollowedAnswer, LiveAnswer, TableAnswer, exit_rate_of
from service.api.schemas import ModelQuery
from service.calibration.drift import drift
from service.calibration.live import WINDOW, window

router = APIRouter(prefix="/calibration", tags=["config"])


@router.get("/live", operation_id="get_live_table", responses=responses(401, 404, 422))
async def live(parts: Injected, query: Annotated[ModelQuery, Query()]) -> LiveAnswer:
    """The calibration table of recent traffic, beside the stored one, and the drift between them.

    It covers all processes of this server.
    """
    engine = parts.models.find(query.model)
    asked, stored = engine.asked, engine.predictor.calibration
    is_followed = asked.table == "live"
    table, _ = await parts.following.table(engine, *((asked.goal, asked.value) if is_followed else ()))
    most = window(asked.goal, asked.value) if is_followed else WINDOW
    rate = table.drawn_per_second
    exit_rate, interval = exit_rate_of(table)
    return LiveAnswer(
        model=engine.spec.name,
        threshold=asked.threshold,
        goal=asked.goal,
        value=asked.value,
        table=asked.table,
        images=table.images,
        window=most,
        stands_for=table.stands_for,
        drawn_per_second=rate,
        adapts_in_seconds=None if rate is None else most / rate,
        exit_rate=exit_rate,
        exit_rate_interval=interval,
        live=TableAnswer.of(table.calibration),
        stored=None if stored is None else TableAnswer.of(stored),
        drift=None
        if stored is None or engine.spec.depth == 1
        else DriftAnswer.of(drift(stored, table, asked.threshold)),
        followed=FollowedAnswer.of(engine.wanted.standing.of(engine.wanted.first)),
    )
