"""``/v2/models/…/config`` and ``/stats``, which Triton's tools (perf_analyzer, tritonclient) ask for."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.dependencies import Injected, Parts
from service.api.error_responses import protocol_responses
from service.api.routes.inference_protocol import MODEL, VERSION, metadata, served
from service.api.triton_schemas import ModelConfig, ModelStatistics, Statistics
from service.engine.engine import Engine

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=protocol_responses(401, 404))


@router.get("/models/stats", operation_id="v2_statistics")
async def statistics(parts: Injected) -> Statistics:
    """What every served model did since the start."""
    return Statistics(model_stats=[await statistics_of(parts, engine) for engine in parts.models])


@router.get(MODEL + "/stats", operation_id="v2_model_statistics")
async def model_statistics(parts: Injected, model: str) -> Statistics:
    """What the model did since the start."""
    return Statistics(model_stats=[await statistics_of(parts, served(parts, model))])


@router.get(VERSION + "/stats", operation_id="v2_version_statistics")
async def version_statistics(parts: Injected, model: str, version: str) -> Statistics:
    """The same of a version, which must be the one served."""
    return Statistics(model_stats=[await statistics_of(parts, served(parts, model, version))])


@router.get(MODEL + "/config", operation_id="v2_model_config")
async def model_config(parts: Injected, model: str) -> ModelConfig:
    """The model's inputs and outputs in the words of Triton's model configuration."""
    return ModelConfig.of(metadata(served(parts, model).spec))


@router.get(VERSION + "/config", operation_id="v2_version_config")
async def version_config(parts: Injected, model: str, version: str) -> ModelConfig:
    """The same of a version, which must be the one served."""
    return ModelConfig.of(metadata(served(parts, model, version).spec))


async def statistics_of(parts: Parts, engine: Engine) -> ModelStatistics:
    """What one model did since the start."""
    spec, totals = engine.spec, await parts.observed.totals(engine)
    return ModelStatistics.of(spec.name, spec.version, totals, engine.has_cache)
