"""``/v2``: the Open Inference Protocol over HTTP, as defined by KServe and Triton, for existing clients.

https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Request, Response
from pydantic.json_schema import SkipJsonSchema

import service
from service.api import receiving, tensors
from service.api.classifying import ask_of, classify_image, most_images
from service.api.dependencies import Injected, Parts, parts_of
from service.api.direct import DirectRoute
from service.api.error_responses import WORK, protocol_responses
from service.api.exchange import unless_client_leaves
from service.api.protocol_schemas import (
    InferAnswer,
    InferRequest,
    ModelMetadata,
    ModelReady,
    RequestParameters,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from service.engine.answer import Answer, Ask
from service.engine.engine import Engine
from service.errors import InvalidOption, LowfirstError, NotFound
from service.model_spec import ModelSpec

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "parameters", "statistics"]
MODEL = "/models/{model}"
VERSION = MODEL + "/versions/{version}"

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])


@router.get("", operation_id="v2_server")
async def server() -> ServerMetadata:
    """Name and version of the server, and the supported extensions."""
    return ServerMetadata(name="lowfirst", version=service.__version__, extensions=EXTENSIONS)


@router.get("/health/live", operation_id="v2_live")
async def live() -> ServerLive:
    """Whether the process answers."""
    return ServerLive()


@router.get("/health/ready", operation_id="v2_ready", responses=protocol_responses(503))
async def ready(parts: Injected) -> ServerReady:
    """Whether the server accepts work; otherwise 503 with the reason."""
    parts.check_ready()
    return ServerReady()


@router.get(MODEL, operation_id="v2_model", responses=protocol_responses(401, 404))
async def model(parts: Injected, model: str) -> ModelMetadata:
    """The model's input and outputs."""
    return metadata(served(parts, model).spec)


@router.get(VERSION, operation_id="v2_version", responses=protocol_responses(401, 404))
async def version(parts: Injected, model: str, version: str) -> ModelMetadata:
    """Inputs and outputs of a version, which must be the served one."""
    return metadata(served(parts, model, version).spec)


@router.get(MODEL + "/ready", operation_id="v2_model_ready", responses=protocol_responses(401, 404, 503))
async def model_ready(parts: Injected, model: str) -> ModelReady:
    """Whether the model accepts work; otherwise 503 with the reason."""
    engine = served(parts, model)
    parts.check_ready()
    return ModelReady(name=engine.spec.name)


@router.get(VERSION + "/ready", operation_id="v2_version_ready", responses=protocol_responses(401, 404, 503))
async def version_ready(parts: Injected, model: str, version: str) -> ModelReady:
    """Whether a version accepts work; it must be the served one."""
    engine = served(parts, model, version)
    parts.check_ready()
    return ModelReady(name=engine.spec.name)


def _body(
    asked: Annotated[InferRequest, Body()],
    inference_header_content_length: Annotated[
        str | SkipJsonSchema[None],
        Header(description="Bytes of the JSON, where binary tensors follow it; 0: the body is one image."),
    ] = None,
) -> None:
    """For OpenAPI only."""


def _model(model: str) -> None:
    """For OpenAPI only."""


def _version(model: str, version: str) -> None:
    """For OpenAPI only."""


TENSORS = {"schema": {"type": "string", "format": "binary"}}
DOCUMENTED: dict[str, Any] = {
    "response_model": InferAnswer,
    "response_model_exclude_none": True,
    "openapi_extra": {"requestBody": {"required": True, "content": {tensors.BINARY: TENSORS}}},
    "responses": {
        **protocol_responses(*WORK),
        200: {
            "content": {tensors.BINARY: TENSORS},
            "headers": {
                tensors.JSON_LENGTH: {
                    "description": "Bytes of the JSON, where binary tensors follow it.",
                    "schema": {"type": "integer"},
                }
            },
        },
    },
}


async def infer(request: Request) -> Response:
    """Classify the images of the tensor `image`, encoded as for `POST /classify`.

    The protocol has no errors for single images: if one image fails, the request fails, and the error names the image.
    """
    parts = parts_of(request)
    named = request.path_params["model"], request.path_params.get("version")
    served(parts, *named)
    parts.admission.check()
    body = await receiving.read(request, parts.settings.max_batch_bytes)
    asked, images = tensors.read(request, body, most_images(parts))
    engine = served(parts, *named)  # again: the model may have been switched while the body arrived
    ask = _ask(request, parts, asked.parameters or RequestParameters(), len(engine.spec.classes))
    with parts.admission.admit(images=len(images), size=len(body)):
        answers = await unless_client_leaves(request, classify_all(parts, engine, images, ask))
    return tensors.answer(asked, answers)


for _path, _named, _id in ((MODEL, _model, "v2_infer"), (VERSION, _version, "v2_infer_version")):
    router.add_api_route(
        _path + "/infer",
        infer,
        methods=["POST"],
        operation_id=_id,
        dependencies=[Depends(_named), Depends(_body)],
        route_class_override=DirectRoute,
        **DOCUMENTED,
    )


async def classify_all(parts: Parts, engine: Engine, images: list[bytes], ask: Ask) -> list[Answer]:
    """All answers, or the first error; the other images are then dropped."""
    running = [asyncio.ensure_future(_classify(parts, engine, index, image, ask)) for index, image in enumerate(images)]
    try:
        return await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()


async def _classify(parts: Parts, engine: Engine, index: int, image: bytes, ask: Ask) -> Answer:
    try:
        return await classify_image(parts, engine, image, replace(ask, index=index))
    except LowfirstError as error:
        raise error.about(f"image {index}") from error


def _ask(request: Request, parts: Parts, wanted: RequestParameters, classes: int) -> Ask:
    names_version = "version" in request.path_params or "/" in request.path_params["model"]
    return ask_of(request, parts, wanted.threshold, deadline_ms_of(wanted), top_k=classes, names_version=names_version)


def deadline_ms_of(wanted: RequestParameters) -> float | None:
    """The deadline by either name. Raises InvalidOption if both are given."""
    if wanted.timeout is None:
        return wanted.deadline_ms
    if wanted.deadline_ms is not None:
        raise InvalidOption("parameters.timeout", wanted.timeout, "absent if deadline_ms is given")
    return wanted.timeout / 1e3


def served(parts: Parts, model: str, version: str | None = None) -> Engine:
    """The engine of that model. Raises NotFound for another name or version."""
    engine = parts.models.find(model)
    if version is not None and version != str(engine.spec.version):
        raise NotFound(
            f"version of {model} is {version!r}; {engine.spec.version} is served",
            field="version",
            value=version,
            bound=engine.spec.version,
        )
    return engine


def metadata(spec: ModelSpec) -> ModelMetadata:
    """Metadata of a model in the format of the protocol."""
    return ModelMetadata.of(spec.name, spec.version, len(spec.classes))
