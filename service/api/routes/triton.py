"""``/v2/models/…/config`` and ``/stats``, used by Triton's tools (perf_analyzer, tritonclient)."""

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
    """Statistics of all served models since the start."""
    return Statistics(model_stats=[await statistics_of(parts, engine) for engine in parts.models])


@router.get(MODEL + "/stats", operation_id="v2_model_statistics")
async def model_statistics(parts: Injected, model: str) -> Statistics:
    """Statistics of the model since the start."""
    return Statistics(model_stats=[await statistics_of(parts, served(parts, model))])


@router.get(VERSION + "/stats", operation_id="v2_version_statistics")
async def version_statistics(parts: Injected, model: str, version: str) -> Statistics:
    """Statistics of a version, which must be the served one."""
    return Statistics(model_stats=[await statistics_of(parts, served(parts, model, version))])


@router.get(MODEL + "/config", operation_id="v2_model_config")
async def model_config(parts: Injected, model: str) -> ModelConfig:
    """The model's inputs and outputs in the format of Triton's model configuration."""
    return ModelConfig.of(metadata(served(parts, model).spec))


@router.get(VERSION + "/config", operation_id="v2_version_config")
async def version_config(parts: Injected, model: str, version: str) -> ModelConfig:
    """The same for a version, which must be the served one."""
    return ModelConfig.of(metadata(served(parts, model, version).spec))


async def statistics_of(parts: Parts, engine: Engine) -> ModelStatistics:
    """Statistics of one model since the start."""
    spec, totals = engine.spec, await parts.observed.totals(engine)
    return ModelStatistics.of(spec.name, spec.version, totals, engine.has_cache)
