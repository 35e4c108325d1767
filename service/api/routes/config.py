"""The runtime config: the threshold, asked for by what it should achieve."""

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
    """The documentation of a body that ``_json`` reads; ``document`` adds what it refers to."""
    reference = {"$ref": f"#/components/schemas/{schema.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def document(app: FastAPI) -> None:
    """Have OpenAPI name the bodies that ``_json`` reads, as it names those that FastAPI reads."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        for each in (FeedbackBody, ModelPatch, ThresholdPatch):
            schema["components"]["schemas"][each.__name__] = each.model_json_schema()
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _json(schema: type[Patch]) -> Callable[[Request], Awaitable[Patch]]:
    """Reads a body of ``schema``, bounded: FastAPI by itself would read it however long it is.

    Only JSON: a page elsewhere can make a browser send other types without asking.
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
    """The threshold asked, the goal it was asked by, and its predicted effect."""
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

    With `"table": "live"` it is solved by today's traffic, and follows it from now on.
    """
    engine = parts.models.find(query.model)
    name = engine.spec.name
    goal = patch.goal
    solved = await _solve(parts, engine, patch)

    def change(current: RuntimeConfig) -> RuntimeConfig:
        if engine.spec.key not in current.served:  # the goal was solved for another version
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
    parts.following.begin(engine, chosen)
    logger.info(
        "threshold of %s is %s (%s %s by the %s table), floor %s, config version %d",
        name, chosen.threshold, chosen.goal, chosen.value, chosen.table, chosen.floor, current.version,
    )  # fmt: skip
    response.headers["ETag"] = f'"{current.version}"'
    return _answer(engine, chosen, current.version)


@router.get("/model", operation_id="get_model", responses=responses(404, 503))
async def model(parts: Injected, response: Response) -> ModelConfigAnswer:
    """What is served, and what is tried beside it: how both compare, over all processes of this server."""
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
    """Serve another model, or another version, without a stop: no request fails, no image is lost.

    It is loaded, verified and warmed up beside the one it replaces: that of the same name, or the one that `?model=`
    names, or the default one. What was asked for there is solved again. What cannot be served changes nothing.

    With `share` it is tried on that share of the images instead, with `shadow` behind the answers, until `promote` or
    `cancel`, or until its guard `max_disagreement` cancels it.
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
    """What a threshold would do: by the calibration table, and to the images seen lately. Nothing is changed."""
    engine = parts.models.find(query.model)
    spec = engine.spec
    threshold = query.threshold
    rate, images = engine.recent.exit_rate_at(threshold)
    return PreviewAnswer(
        model=spec.name,
        threshold=threshold,
        predicted=_predict(engine, threshold),
        recent=RecentEffect(
            images=images,
            exit_rate=rate,
            mean_mmacs=engine.recent.mean_mmacs_at(threshold, spec.mmacs),
        ),
    )


async def _solve(parts: Parts, engine: Engine, patch: ThresholdPatch) -> float | None:
    """What the goal gives, by the table it names; None where only the floor changes."""
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
