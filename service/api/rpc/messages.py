"""The messages of ``inference.proto``, in a separate pool: a client in this process may use the same names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"

Message = Any  # the class is created on import of this module


def _load() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    compiled = files("service.api.rpc").joinpath("inference.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.Add(file)
    return pool


_POOL = _load()

# Request and response classes by method name.
METHODS: Mapping[str, tuple[Any, Any]] = {
    method.name: (
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
    )
    for method in _POOL.FindServiceByName(SERVICE).methods
}


def parameters_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """A map of ``InferParameter`` as plain values; None for one without a value."""
    chosen = {name: each.WhichOneof("parameter_choice") for name, each in given.items()}
    return {name: getattr(given[name], choice) if choice else None for name, choice in chosen.items()}


def set_parameters(target: Any, values: Mapping[str, Any]) -> None:
    """Fill a map of ``InferParameter``."""
    for name, value in values.items():
        kind = next(field for type_, field in _FIELDS if isinstance(value, type_))
        setattr(target[name], kind, value)


_FIELDS = ((bool, "bool_param"), (int, "int64_param"), (str, "string_param"), (float, "double_param"))
