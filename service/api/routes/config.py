"""The runtime config: the threshold, asked for in four ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import JsonValue
from pydantic.json_schema import SkipJsonSchema

from service.api import bodies
from service.api.dependencies import Injected, Parts
from service.api.schemas import (
    ConfigAnswer,
    ModelQuery,
    PredictedEffect,
    PreviewAnswer,
    PreviewQuery,
    RecentEffect,
    ThresholdAnswer,
    ThresholdPatch,
)
from service.errors import BadRequest, InvalidOption
from service.log import logger
from service.state.base import RuntimeConfig, ThresholdConfig

router = APIRouter(prefix="/config", tags=["config"])

MAX_PATCH_BYTES = 4096
PATCH = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ThresholdPatch.model_json_schema()}},
    }
}

VERSION: dict[str, JsonValue] = {"pattern": r'^(\*|(W/)?"?[0-9]+"?)$'}


async def _patch(request: Request) -> ThresholdPatch:
    """The body, bounded: FastAPI by itself would read it however long it is.

    Only JSON: a page elsewhere can make a browser send other types without asking.
    """
    kind = bodies.content_type(request)
    if kind != "application/json":
        raise bodies.unsupported(kind, "application/json")
    return bodies.parse(ThresholdPatch, await bodies.read(request, MAX_PATCH_BYTES))


@router.get("")
async def config(parts: Injected) -> ConfigAnswer:
    """Everything that can be changed while the server runs."""
    current = parts.config.current
    return ConfigAnswer(
        version=current.version, thresholds=[_answer(parts, current, name) for name in sorted(current.thresholds)]
    )


@router.get("/threshold")
async def threshold(parts: Injected, response: Response, query: Annotated[ModelQuery, Query()]) -> ThresholdAnswer:
    """The threshold in force, what was asked for it, and its predicted effect."""
    current = parts.config.current
    response.headers["ETag"] = f'"{current.version}"'
    return _answer(parts, current, parts.check_model(query.model))


@router.patch("/threshold", openapi_extra=PATCH)
async def change_threshold(
    parts: Injected,
    patch: Annotated[ThresholdPatch, Depends(_patch)],
    response: Response,
    query: Annotated[ModelQuery, Query()],
    if_match: Annotated[
        str | SkipJsonSchema[None], Header(description="Version the config must still have.", json_schema_extra=VERSION)
    ] = None,
) -> ThresholdAnswer:
    """Move the balance of accuracy and cost: name the threshold, or what it should achieve."""
    name = parts.check_model(query.model)
    goal = patch.goal
    solved = None if goal is None else _solve(parts, *goal)

    def change(current: RuntimeConfig) -> RuntimeConfig:
        before = current.thresholds[name]
        floor = patch.floor if "floor" in patch.model_fields_set else before.floor
        kept = before.threshold if solved is None else solved
        if floor is not None and floor > kept:
            if "floor" in patch.model_fields_set:
                raise InvalidOption("floor", floor, f"at most the threshold, {kept}")
            raise InvalidOption("threshold", kept, f"at least the floor in force, {floor}; lower or clear it too")
        asked = (before.goal, before.value) if goal is None else goal
        chosen = ThresholdConfig(*asked, threshold=kept, floor=floor)
        return replace(current, thresholds={**current.thresholds, name: chosen})

    current = await parts.config.update(change, _version(if_match))
    chosen = current.thresholds[name]
    logger.info(
        "threshold of %s is %s (%s %s), floor %s, config version %d",
        name, chosen.threshold, chosen.goal, chosen.value, chosen.floor, current.version,
    )  # fmt: skip
    response.headers["ETag"] = f'"{current.version}"'
    return _answer(parts, current, name)


@router.get("/threshold/preview")
async def preview(parts: Injected, query: Annotated[PreviewQuery, Query()]) -> PreviewAnswer:
    """What a threshold would do: by the calibration table, and to the images seen lately. Nothing is changed."""
    name = parts.check_model(query.model)
    spec = parts.engine.spec
    threshold = query.threshold
    rate, images = parts.engine.recent.exit_rate_at(threshold)
    return PreviewAnswer(
        model=name,
        threshold=threshold,
        predicted=_predict(parts, threshold),
        recent=RecentEffect(
            images=images,
            exit_rate=rate,
            mean_mmacs=None if rate is None else spec.mean_mmacs(rate),
        ),
    )


def _solve(parts: Parts, goal: str, value: float) -> float:
    if parts.calibration is not None:
        return parts.calibration.solve(goal, value)  # type: ignore[arg-type]
    if goal == "threshold":
        return value
    raise InvalidOption(goal, value, "left out: the model has no calibration table (only threshold can be set)")


def _predict(parts: Parts, threshold: float) -> PredictedEffect | None:
    return None if parts.calibration is None else PredictedEffect.of(parts.calibration.predict(threshold))


def _answer(parts: Parts, current: RuntimeConfig, name: str) -> ThresholdAnswer:
    config = current.thresholds[name]
    return ThresholdAnswer(
        model=name,
        goal=config.goal,
        value=config.value,
        threshold=config.threshold,
        floor=config.floor,
        version=current.version,
        predicted=_predict(parts, config.threshold),
    )


def _version(if_match: str | None) -> int | None:
    """The version in an ``If-Match`` header: ``"3"`` or ``3``; ``*`` matches any."""
    if if_match is None or if_match.strip() == "*":
        return None
    bare = if_match.strip().removeprefix("W/").strip('"')
    if not bare.isdecimal():
        raise BadRequest(f"If-Match is {if_match!r}; it must be a version", field="If-Match", value=if_match)
    return int(bare)
