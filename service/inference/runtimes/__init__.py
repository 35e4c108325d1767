"""Lists the runtimes and selects one."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from service.errors import InvalidOption
from service.inference.device import Precision, choose_precision
from service.inference.runtimes.base import Runtime
from service.inference.runtimes.eager import EagerRuntime
from service.model_spec import ModelSpec
from service.networks.cascade import Cascade

RUNTIMES = ("eager", "openvino", "cuda")

# Of a model folder: where its int8 stages are.
INT8_FOLDER = "openvino-int8"

# OpenVINO tells its vendor that it was imported, and from where, unless this package is missing. A server asks no
# other host.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def choose_runtime(name: str, device: torch.device) -> str:
    """The runtime for a setting: ``auto`` -> the fastest one for ``device`` on this machine; a name -> itself.

    Raises:
        InvalidOption: the runtime is unknown, does not support this device, or is not installed.
    """
    if name == "auto":  # CUDA graphs have not been tested on a GPU yet
        return "openvino" if device.type == "cpu" and find_spec("openvino") else "eager"
    if name not in RUNTIMES:
        raise InvalidOption("runtime", name, f"auto, {', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}")
    if name == "cuda" and device.type != "cuda":
        raise InvalidOption("runtime", name, f"auto, eager or openvino: the device is {device.type}")
    if name == "openvino":
        if device.type != "cpu":
            raise InvalidOption("runtime", name, f"auto, eager or cuda: the device is {device.type}")
        if not find_spec("openvino"):
            raise InvalidOption("runtime", name, "an installed one: pip install '.[openvino]'")
    return name


def is_quantised(spec: ModelSpec) -> bool:
    """Whether the model has int8 stages."""
    return any(name.startswith(f"{INT8_FOLDER}/") for name in spec.files)


def available(device: torch.device, spec: ModelSpec) -> list[tuple[str, Precision]]:
    """All (runtime, precision) pairs that can serve a model on ``device``; the reference, eager float32, first.

    If the model is quantised, int8 is last.
    """
    fastest = choose_runtime("auto", device)
    precisions = dict.fromkeys(("float32", choose_precision("auto", device)))
    pairs = [(runtime, precision) for runtime in dict.fromkeys(("eager", fastest)) for precision in precisions]
    return [*pairs, ("openvino", "int8")] if is_quantised(spec) and fastest == "openvino" else pairs


def build_runtime(
    name: str, network: Cascade, spec: ModelSpec, device: torch.device, precision: Precision, threads: int
) -> Runtime:
    """The runtime ``name``, from ``choose_runtime``, for ``network``, which it may change.

    Args:
        threads: number of threads that one batch may use on a CPU. For PyTorch each calling thread sets this itself.
    """
    if name == "openvino":
        from service.inference.runtimes.openvino import OpenVINORuntime, convert

        return OpenVINORuntime(convert(network, spec), precision, threads)
    if name == "cuda":
        from service.inference.runtimes.cuda import CudaRuntime

        return CudaRuntime(network, spec, device, precision)
    return EagerRuntime(network, spec, device, precision)


def converts(name: str) -> bool:
    """Whether the runtime first converts networks, which holds Python's lock for a second or more."""
    return name == "openvino"


def save_converted(network: Cascade, spec: ModelSpec, place: Path) -> None:
    """Convert ``network`` (and change it) to files for ``build_converted``. Raises RuntimeError if the disk is full."""
    from service.inference.runtimes.openvino import convert, save

    save(convert(network, spec), spec, place)


def build_converted(place: Path, spec: ModelSpec, precision: Precision, threads: int) -> Runtime:
    """The runtime of the stages that ``save_converted`` wrote to ``place``. The files may be deleted afterwards."""
    from service.inference.runtimes.openvino import OpenVINORuntime, read

    return OpenVINORuntime(read(place, spec), precision, threads)


def build_quantised(name: str, folder: Path, spec: ModelSpec, threads: int) -> Runtime:
    """The runtime for the int8 stages in ``folder``.

    Raises:
        InvalidOption: the runtime is not OpenVINO, or the model has not been quantised.
        BrokenModel: the files do not match ``spec``.
    """
    if name != "openvino":
        raise InvalidOption("precision", "int8", f"auto, float32 or bfloat16: {name} runs no int8, openvino does")
    from service.inference.runtimes.openvino import OpenVINORuntime, quantised

    return OpenVINORuntime(quantised(folder, spec), "int8", threads)
