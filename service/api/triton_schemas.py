"""Schemas for Triton's tools: model configuration and statistics.

Shapes: https://github.com/triton-inference-server/server/tree/main/docs/protocol, extension_model_configuration.md and
extension_statistics.md.
"""

from __future__ import annotations

import time

from pydantic import BaseModel, Field

from service.api.protocol_schemas import Datatype, ModelMetadata, TensorMetadata
from service.engine.recent import Totals

NANOSECONDS = 1e9
MILLISECONDS = 1e3

# Names of data types in a configuration, https://github.com/triton-inference-server/common, model_config.proto.
TYPES: dict[Datatype, str] = {
    "BYTES": "TYPE_STRING",
    "BOOL": "TYPE_BOOL",
    "FP32": "TYPE_FP32",
    "FP64": "TYPE_FP64",
    "INT64": "TYPE_INT64",
}


class TensorConfig(BaseModel):
    """An input or output; -1 stands for the number of images."""

    name: str
    data_type: str
    dims: list[int]

    @classmethod
    def of(cls, tensor: TensorMetadata) -> TensorConfig:
        """The same tensor in the format of a configuration."""
        return cls(name=tensor.name, data_type=TYPES[tensor.datatype], dims=tensor.shape)


class ModelConfig(BaseModel):
    """A served model. Triton's own batching is not used: the images of a request are elements of its one dimension."""

    name: str
    platform: str
    backend: str
    max_batch_size: int = Field(
        0, description="Always 0: `dims` contain every dimension, including that of the images."
    )
    input: list[TensorConfig]
    output: list[TensorConfig]

    @classmethod
    def of(cls, model: ModelMetadata) -> ModelConfig:
        """The same model in the format of a configuration."""
        return cls(
            name=model.name,
            platform=model.platform,
            backend=model.platform,
            input=[TensorConfig.of(tensor) for tensor in model.inputs],
            output=[TensorConfig.of(tensor) for tensor in model.outputs],
        )


class Duration(BaseModel):
    """Number and total duration of events."""

    count: int
    ns: int

    @classmethod
    def of(cls, count: int, seconds: float = 0.0) -> Duration:
        """Convert a number and total seconds."""
        return cls(count=count, ns=round(NANOSECONDS * seconds))


class InferenceStatistics(BaseModel):
    """Durations since the start; every image counts as a request."""

    success: Duration = Field(description="From request to answer.")
    fail: Duration
    queue: Duration
    compute_input: Duration = Field(description="Decoding.")
    compute_infer: Duration = Field(description="The stages, for the whole batch of the image.")
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class ModelStatistics(BaseModel):
    """Statistics of one served model since the start, over all processes of the server."""

    name: str
    version: str
    last_inference: int = Field(description="Milliseconds since 1970; 0 before the first image.")
    inference_count: int = Field(description="Images computed.")
    execution_count: int = Field(description="Batches run, over all stages.")
    inference_stats: InferenceStatistics
    batch_stats: list[dict[str, int]] = Field([], description="Always empty: see `lowfirst_batch_size` in the metrics.")

    @classmethod
    def of(cls, name: str, version: int, totals: Totals, has_cache: bool) -> ModelStatistics:
        """Convert the model's totals."""
        computed = totals.images - totals.cached
        last = 0.0 if totals.idle_seconds is None else time.time() - totals.idle_seconds
        return cls(
            name=name,
            version=str(version),
            last_inference=round(MILLISECONDS * last),
            inference_count=computed,
            execution_count=totals.batches,
            inference_stats=InferenceStatistics(
                success=Duration.of(totals.images, totals.seconds),
                fail=Duration.of(totals.failed, totals.failed_seconds),
                queue=Duration.of(computed, totals.queue_seconds),
                compute_input=Duration.of(computed, totals.decode_seconds),
                compute_infer=Duration.of(computed, totals.compute_seconds),
                compute_output=Duration.of(computed),
                cache_hit=Duration.of(totals.cached),
                cache_miss=Duration.of(computed if has_cache else 0),
            ),
        )


class Statistics(BaseModel):
    """Statistics of the requested models."""

    model_stats: list[ModelStatistics]
