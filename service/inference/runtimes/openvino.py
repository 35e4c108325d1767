"""OpenVINO on the CPU: a whole pass is one call, outside Python's lock (``pip install lowfirst[openvino]``)."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import openvino as ov
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from openvino.preprocess import PrePostProcessor
from torch import Tensor, nn

from service.errors import InvalidOption
from service.images.transforms import Preprocessing
from service.inference.device import Precision
from service.inference.runtimes import INT8_FOLDER, is_quantised
from service.inference.runtimes.base import channels, normalise
from service.inference.runtimes.folding import fold_norms
from service.model_spec import ModelSpec
from service.networks.cascade import Carried, Cascade
from service.store import verified

# What is not quantised in an int8 model is computed in float32.
PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


# One a process, never given back: OpenVINO's CPU plug-in gives the thread that loads it a stack for signals, and takes
# it away with itself. Of several, the last may leave that thread with one already freed: the next signal crashes.
CORE = ov.Core()


def convert(network: Cascade, spec: ModelSpec) -> list[ov.Model]:
    """Each stage of ``network``, which is taken over: uint8 pixels (B, r, r, 3) in, any B; float32 out."""
    network = fold_norms(network)
    converted, carried = [], ()
    for index, side in enumerate(spec.resolutions):
        stage = _Stage(network, index, channels(spec, index))
        inputs = [torch.zeros(2, side, side, 3, dtype=torch.uint8), *carried]
        converted.append(_convert(stage, inputs))
        with torch.inference_mode():
            _, *carried = stage(*inputs)
    return converted


def quantised(folder: Path, spec: ModelSpec) -> list[ov.Model]:
    """The int8 stages in a model folder.

    Raises:
        InvalidOption: the model has none, or an earlier version made them, whose first stage halved its input itself.
        BrokenModel: they are not what its spec says.
    """
    if not is_quantised(spec):
        raise InvalidOption("precision", "int8", f"another one: {spec.name} has not been quantised (lowfirst quantise)")
    for name, digest in spec.files.items():
        verified(folder, name, digest)
    models = [CORE.read_model(folder / INT8_FOLDER / f"{stage.name}.xml") for stage in spec.stages]
    for model, stage in zip(models, spec.stages, strict=True):
        if model.inputs[0].partial_shape[1].get_length() != stage.resolution:
            raise InvalidOption(
                "precision", "int8", f"another one: an earlier version quantised {spec.name} (lowfirst quantise again)"
            )
    return models


class OpenVINORuntime:
    """Runs ``models``, as ``convert`` gives them or ``quantised`` reads them.

    Each thread that calls gets compiled stages of its own, with one stream of ``threads`` threads: two such ran
    MS-MobileNetV1-0.5 at 2,250 images/s where two streams of one compiled model ran 1,700.
    """

    name = "openvino"

    def __init__(self, models: Sequence[ov.Model], precision: Precision, threads: int) -> None:
        self._models = _with_bfloat16_features(models) if precision == "bfloat16" else models
        self._threads = threads
        self._hint = PRECISION_HINTS[precision]
        self._own = threading.local()

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """See ``Runtime``."""
        logits, *handed_on = self._compiled(stage).run([_pixels(images), *(each.contiguous() for each in carried)])
        return logits, tuple(handed_on)

    def _compiled(self, stage: int) -> Compiled:
        own: dict[int, Compiled] = self._own.__dict__.setdefault("stages", {})
        if stage not in own:
            config = {
                "INFERENCE_PRECISION_HINT": self._hint,
                "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": self._threads,
                "ENABLE_CPU_PINNING": False,
            }
            own[stage] = Compiled(CORE.compile_model(self._models[stage], "CPU", config))
        return own[stage]


class Compiled:
    """One compiled stage with one request, used by one thread at a time."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._request = compiled.create_infer_request()
        self._ports = [
            (tuple(port.partial_shape.get_max_shape())[1:], DTYPES[port.get_element_type().get_type_name()])
            for port in compiled.outputs
        ]
        self._outputs: dict[int, list[Tensor]] = {}
        self._rows = 0

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Inputs with B rows each -> outputs with B rows, overwritten by the next run with B rows; nothing is copied.

        Memory is kept for every B that comes: fresh pages took a fifth of a small stage's time.
        """
        rows = len(inputs[0])
        for index, tensor in enumerate(inputs):
            self._request.set_input_tensor(index, _shared(tensor))
        if rows not in self._outputs:
            self._outputs[rows] = [torch.empty((rows, *shape), dtype=dtype) for shape, dtype in self._ports]
        if rows != self._rows:
            for index, tensor in enumerate(self._outputs[rows]):
                self._request.set_output_tensor(index, _shared(tensor))
            self._rows = rows
        self._request.infer()
        return self._outputs[rows]


def _shared(tensor: Tensor) -> ov.Tensor:
    """The same memory."""
    if tensor.dtype == torch.bfloat16:  # which NumPy does not have
        return ov.Tensor(tensor.view(torch.uint16).numpy(), ov.Shape(list(tensor.shape)), ov.Type.bf16)
    return ov.Tensor(tensor.numpy(), shared_memory=True)


def _with_bfloat16_features(models: Sequence[ov.Model]) -> Sequence[ov.Model]:
    """``models``, which are changed, handing over features as they were computed: half the memory to reorder."""
    for model in models:
        ports = PrePostProcessor(model)
        for index in range(1, len(model.outputs)):
            ports.output(index).tensor().set_element_type(ov.Type.bf16)
        for index in range(1, len(model.inputs)):
            ports.input(index).tensor().set_element_type(ov.Type.bf16)
        ports.build()
    return models


class _Stage(nn.Module):
    """uint8 (B, r, r, 3) and what the stage before handed on -> logits, then what is handed on."""

    def __init__(self, network: Cascade, stage: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._network = network
        self._stage = stage
        self._preprocessing = preprocessing

    def forward(self, pixels: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        images = normalise(pixels.permute(0, 3, 1, 2), self._preprocessing)
        logits, handed_on = self._network.run(self._stage, images, carried)
        return logits, *handed_on


def _pixels(images: Tensor) -> Tensor:
    """uint8 (B, 3, R, R) -> (B, R, R, 3), without a copy where its memory is in that order already."""
    return images.permute(0, 2, 3, 1).contiguous()


def _convert(module: nn.Module, inputs: Sequence[Tensor]) -> ov.Model:
    """The module as a model of any batch size."""
    with torch.inference_mode():
        module(*inputs)  # what is made once must not be made while it is traced
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and wary of sizes, which here do not change
        decoder = TorchScriptPythonDecoder(module, example_input=tuple(inputs))
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    for port, example in zip(model.inputs, inputs, strict=True):
        parameter = port.get_node()
        parameter.set_partial_shape(ov.PartialShape([-1, *example.shape[1:]]))
        if example.dtype == torch.uint8:
            parameter.set_element_type(ov.Type.u8)
    model.validate_nodes_and_infer_types()
    _forget_traces()
    return model


def _forget_traces() -> None:
    """PyTorch keeps whatever was traced, weights and all, for as long as the process lives: models may be exchanged."""
    torch._C._jit_clear_class_registry()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
