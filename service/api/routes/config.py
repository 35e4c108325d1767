"""Routes of the runtime config: the threshold, set directly or by a goal, and the served model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from pydantic import BaseModel, JsonValue
from pydantic.json_schema import SkipJsonSchema

from service.api import bodies, receiving
from service.api.config_schemas import (
    ConfigAnswer,
    PredictedEffect,
    PreviewAnswer,
    RecentEffect,
    ThresholdAnswer,
    ThresholdPatch,
)
from service.api.dependencies import Injected, Parts
from service.api.error_responses import CHANGE, responses
from service.api.live_schemas import FollowedAnswer
from service.api.schemas import FeedbackBody, ModelName, ModelQuery, PreviewQuery
from service.api.trial_schemas import EndedAnswer, ModelConfigAnswer, ModelPatch, TrialAnswer
from service.engine.engine import Engine
from service.errors import BadRequest, ConfigConflict, InvalidOption, LowfirstError
from service.log import logger
from service.state.base import RuntimeConfig, ThresholdConfig

router = APIRouter(prefix="/config", tags=["config"], responses=responses(401))

MAX_PATCH_BYTES = 4096

Patch = TypeVar("Patch", bound=BaseModel)

VERSION: dict[str, JsonValue] = {"pattern": r'^(\*|(W/)?"?[0-9]{1,18}"?)$'}
IfMatch = Annotated[
    str | SkipJsonSchema[None], Header(description="Version the config must still have.", json_schema_extra=VERSION)
]


def json_body(schema: type[BaseModel]) -> dict[str, object]:
    """OpenAPI description of a body that ``_json`` reads; ``document`` adds the referenced schemas."""
    reference = {"$ref": f"#/components/schemas/{schema.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def document(app: FastAPI) -> None:
    """Add the schemas of bodies that ``_json`` reads to OpenAPI, as FastAPI does for its own."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        for each in (FeedbackBody, ModelPatch, ThresholdPatch):
            schema["components"]["schemas"][each.__name__] = each.model_json_schema()
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _json(schema: type[Patch]) -> Callable[[Request], Awaitable[Patch]]:
    """Read a body of ``schema`` with a size limit, which FastAPI does not have.

    Only JSON is accepted: a foreign web page can make a browser send other types without a preflight request.
    """

    async def read(request: Request) -> Patch:
        kind = bodies.content_type(request)
        if kind != "application/json":
            raise bodies.unsupported(kind, "application/json")
        return bodies.parse(schema, await receiving.read(request, MAX_PATCH_BYTES))

    return read


@router.get("", operation_id="get_config")
async def config(parts: Injected) -> ConfigAnswer:
    """Everything that can be changed while the server runs."""
    return _config(parts)


@router.get("/threshold", operation_id="get_threshold", responses=responses(404, 422))
async def threshold(parts: Injected, response: Response, query: Annotated[ModelQuery, Query()]) -> ThresholdAnswer:
    """The threshold asked for, its goal, and its predicted effect."""
    engine = parts.models.find(query.model)
    response.headers["ETag"] = f'"{parts.models.config.version}"'
    return _answer(engine, engine.wanted.first, parts.models.config.version)


@router.patch(
    "/threshold", operation_id="change_threshold", responses=responses(*CHANGE), openapi_extra=json_body(ThresholdPatch)
)
async def change_threshold(
    parts: Injected,
    patch: Annotated[ThresholdPatch, Depends(_json(ThresholdPatch))],
    response: Response,
    query: Annotated[ModelQuery, Query()],
    if_match: IfMatch = None,
) -> ThresholdAnswer:
    """Change the trade-off in whichever unit suits you; the response predicts the effect.

    With `"table": "live"` the goal is solved on recent traffic, and the threshold follows the traffic from then on.
    """
    engine = parts.models.find(query.model)
    name = engine.spec.name
    goal = patch.goal
    solved = await _solve(parts, engine, patch)

    def change(current: RuntimeConfig) -> RuntimeConfig:
        if engine.spec.key not in current.served:  # solve the goal again, because the model has changed
            raise ConfigConflict(
                f"{engine.spec.reference} is no longer the model to serve", field="model", value=engine.spec.reference
            )
        before = current.thresholds.get(name, engine.asked)
        floor = patch.floor if "floor" in patch.model_fields_set else before.floor
        kept = engine.wanted.standing.applied(before).threshold if solved is None else solved
        if patch.table == "live" and floor is not None:
            kept = max(kept, floor)
        if floor is not None and floor > kept:
            if "floor" in patch.model_fields_set:
                raise InvalidOption("floor", floor, f"at most the threshold, {kept}")
            raise InvalidOption(
                "threshold", kept, f"at least the current floor, {floor}; change or clear the floor too"
            )
        asked, table = ((before.goal, before.value), before.table) if goal is None else (goal, patch.table)
        chosen = ThresholdConfig(*asked, threshold=kept, floor=floor, table=table)
        return parts.trials.following(current, engine, chosen)

    current = await parts.config.update(change, _version(if_match))
    chosen = current.thresholds[name]
    await parts.following.ask(engine, chosen)
    logger.info(
        "threshold of %s is %s (%s %s by the %s table), floor %s, config version %d",
        name, chosen.threshold, chosen.goal, chosen.value, chosen.table, chosen.floor, current.version,
    )  # fmt: skip
    response.headers["ETag"] = f'"{current.version}"'
    return _answer(engine, chosen, current.version)


@router.get("/model", operation_id="get_model", responses=responses(404, 503))
async def model(parts: Injected, response: Response) -> ModelConfigAnswer:
    """The served model, and the model on trial: both are compared over all processes and replicas."""
    response.headers["ETag"] = f'"{parts.models.config.version}"'
    return await _model_config(parts)


@router.patch("/model", operation_id="change_model", responses=responses(*CHANGE), openapi_extra=json_body(ModelPatch))
async def change_model(
    parts: Injected,
    patch: Annotated[ModelPatch, Depends(_json(ModelPatch))],
    response: Response,
    query: Annotated[ModelQuery, Query()],
    if_match: IfMatch = None,
) -> ModelConfigAnswer | ConfigAnswer:
    """Serve another model or version without interruption: no request fails, no image is lost.

    The new model replaces the one that `?model=` names, otherwise the one of the same name, otherwise the default one.
    It is first loaded, verified and warmed up, and the goal of the old one is solved again for it. If it cannot be
    served, nothing changes.

    With `share` the model is tried on that share of the images; with `shadow` it runs in the background. A trial lasts
    until `promote`, `cancel`, or until its guard `max_disagreement` cancels it.
    """
    version = _version(if_match)
    try:
        if patch.promote:
            await parts.trials.promote(version)
        elif patch.cancel:
            await parts.trials.cancel(expected_version=version)
        elif patch.model is not None and patch.is_switch:
            await parts.switching.switch(patch.model, query.model, version)
        else:
            await parts.trials.change(patch.wish, query.model, version)
    except LowfirstError as error:
        logger.warning("%s is refused: %s", patch.model_dump_json(exclude_unset=True)[:200], error)
        raise
    response.headers["ETag"] = f'"{parts.models.config.version}"'
    return _config(parts) if patch.is_switch else await _model_config(parts)


@router.get("/threshold/preview", operation_id="preview_threshold", responses=responses(404, 422))
async def preview(parts: Injected, query: Annotated[PreviewQuery, Query()]) -> PreviewAnswer:
    """Predict the effect of a threshold, from the calibration table and from recent images. Nothing is changed."""
    engine = parts.models.find(query.model)
    spec = engine.spec
    threshold = query.threshold
    ends = await parts.observed.ends_at(engine, threshold)
    return PreviewAnswer(
        model=spec.name,
        threshold=threshold,
        predicted=_predict(engine, threshold),
        recent=RecentEffect.of(ends, spec.mmacs),
    )


async def _solve(parts: Parts, engine: Engine, patch: ThresholdPatch) -> float | None:
    """Solve the goal with its table; None if only the floor changes."""
    if patch.goal is None:
        return None
    goal, value = patch.goal
    if patch.table == "stored":
        return engine.solve(goal, value)
    return await parts.following.solve(engine, ThresholdConfig(goal, value, 1.0, table="live"))


def _predict(engine: Engine, threshold: float) -> PredictedEffect | None:
    prediction = engine.predict(threshold)
    return None if prediction.effect is None else PredictedEffect.of(prediction.effect, prediction.time)


async def _model_config(parts: Parts) -> ModelConfigAnswer:
    config, trial = parts.models.config, None
    if config.trial is not None:
        beside = parts.models.find(config.trial.beside).spec.version
        trial = TrialAnswer.of(config.trial, beside, await parts.trials.comparison(config.trial))
    ended = None if config.ended is None else EndedAnswer.of(config.ended)
    return ModelConfigAnswer(**dict(_config(parts)), trial=trial, ended=ended)


def _config(parts: Parts) -> ConfigAnswer:
    version = parts.models.config.version
    return ConfigAnswer(
        version=version,
        models=[ModelName(name=engine.spec.name, version=engine.spec.version) for engine in parts.models],
        thresholds=[_answer(engine, engine.wanted.first, version) for engine in parts.models],
    )


def _answer(engine: Engine, asked: ThresholdConfig, version: int) -> ThresholdAnswer:
    followed, asked = engine.wanted.standing.of(asked), engine.wanted.standing.applied(asked)
    return ThresholdAnswer(
        model=engine.spec.name,
        goal=asked.goal,
        value=asked.value,
        threshold=asked.threshold,
        floor=asked.floor,
        version=version,
        predicted=_predict(engine, asked.threshold),
        table=asked.table,
        followed=FollowedAnswer.of(followed),
    )


def _version(if_match: str | None) -> int | None:
    """The version in an ``If-Match`` header: ``"3"`` or ``3``; ``*`` matches any."""
    if if_match is None or if_match.strip() == "*":
        return None
    bare = if_match.strip().removeprefix("W/").strip('"')
    version = receiving.whole_number(bare)
    if version is None:
        raise BadRequest(f"If-Match is {if_match[:100]!r}; it must be a version", field="If-Match", value=if_match)
    return version
