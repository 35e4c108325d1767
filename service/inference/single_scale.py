"""The single-scale network of a cascade: its last stage alone. It is only timed, so its weights do not matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.inference.predictor import Predictor
from service.inference.runtimes import build_runtime
from service.model_spec import Architecture, ModelSpec
from service.networks.registry import COMPOSED, OF_SCALES, backbone_name, build, depth


def single_scale(predictor: Predictor) -> Predictor:
    """A predictor of the single-scale network: the last stage of ``predictor`` without those before it.

    Its weights are random. For a single-stage model it is the model itself.
    """
    if predictor.depth == 1:
        return predictor
    spec = _spec(predictor.spec)
    precision = "bfloat16" if predictor.precision == "int8" else predictor.precision
    architecture = spec.architecture
    network = build(architecture.network, architecture.num_classes, architecture.options)
    runtime = build_runtime(predictor.runtime, network, spec, predictor.device, precision, predictor.threads)
    return Predictor(network, spec, predictor.device, precision, runtime, predictor.threads)


def _spec(spec: ModelSpec) -> ModelSpec:
    last, architecture = spec.stages[-1], spec.architecture
    name, options = architecture.network, dict(architecture.options)
    if name == COMPOSED:
        index, _ = options["order"][-1]
        member: dict[str, Any] = options["members"][index]
        name, options = member["network"], dict(member["options"])
    if depth(name) > 1:
        options = {key: value for key, value in options.items() if key not in OF_SCALES}
    return replace(
        spec,
        architecture=Architecture(backbone_name(name), architecture.num_classes, options),
        preprocessing=replace(spec.preprocessing, crop=last.resolution),
        stages=(last,),
        calibration=(),
    )
