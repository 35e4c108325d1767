"""OpenVINO on the CPU: a whole pass is one call, without Python's lock (``pip install '.[openvino]'``)."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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


# Batch sizes that the first stage is compiled for, and later ones, each with weights of its own. A larger one is no
# faster per image: 8 is within 3 % of 32. The first stage has them all, since a piece of one image takes half as long
# as four; a later stage takes longer per image, and mostly runs one to three.
FIRST_PIECES = (8, 7, 6, 5, 4, 3, 2, 1)
LATER_PIECES = (8, 4, 3, 2, 1)

# One a process, never given back: OpenVINO's CPU plug-in gives the thread that loads it a stack for signals, and takes
# it away with itself. Of several, the last may leave that thread with one already freed: the next signal crashes.
CORE = ov.Core()


def convert(network: Cascade, spec: ModelSpec) -> list[ov.Model]:
    """Each stage of ``network``, which is changed. Input: uint8 pixels (B, r, r, 3) with any B; output: float32."""
    network = fold_norms(network).requires_grad_(requires_grad=False)  # what is handed on belongs to no gradient
    converted, carried = [], ()
    for index, side in enumerate(spec.resolutions):
        stage = _Stage(network, index, channels(spec, index))
        inputs = [torch.zeros(2, side, side, 3, dtype=torch.uint8), *carried]
        converted.append(_convert(stage, inputs))
        with torch.inference_mode():
            _, *carried = stage(*inputs)
    return converted


def save(models: Sequence[ov.Model], spec: ModelSpec, place: Path) -> None:
    """Write ``models``, from ``convert``, to ``place`` for ``read``. Raises RuntimeError if the disk is full."""
    for model, stage in zip(models, spec.stages, strict=True):
        ov.serialize(model, place / f"{stage.name}.xml")


def read(place: Path, spec: ModelSpec) -> list[ov.Model]:
    """The models that ``save`` wrote."""
    return [CORE.read_model(place / f"{stage.name}.xml") for stage in spec.stages]


def quantised(folder: Path, spec: ModelSpec) -> list[ov.Model]:
    """The int8 stages in a model folder.

    Raises:
        InvalidOption: the model has no int8 stages, or has those of an earlier version, whose first stage halved its
            input itself.
        BrokenModel: the files do not match the model's spec.
    """
    if not is_quantised(spec):
        raise InvalidOption(
            "precision", "int8", f"auto, float32 or bfloat16 until {spec.name} is quantised with lowfirst quantise"
        )
    for name, digest in spec.files.items():
        verified(folder, name, digest)
    models = read(folder / INT8_FOLDER, spec)
    for model, stage in zip(models, spec.stages, strict=True):
        if model.inputs[0].partial_shape[1].get_length() != stage.resolution:
            raise InvalidOption(
                "precision",
                "int8",
                f"auto, float32 or bfloat16 until {spec.name} is quantised again by this version",
            )
    return models


def config(precision: Precision, threads: int) -> dict[str, Any]:
    """The configuration for compiling models: for one caller at a time, with ``threads`` threads."""
    return {
        "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision],
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }


class OpenVINORuntime:
    """Runs ``models``, which come from ``convert`` or ``quantised``.

    Each calling thread gets its own compiled stages, with one stream of ``threads`` threads. For MS-MobileNetV1-0.5 two
    of these ran 2,250 images/s, and two streams of one compiled model 1,700.
    """

    name = "openvino"

    def __init__(self, models: Sequence[ov.Model], precision: Precision, threads: int) -> None:
        self._models = _with_bfloat16_features(models) if precision == "bfloat16" else models
        self._config = config(precision, threads)
        self._own = threading.local()

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """See ``Runtime``."""
        own: dict[int, CompiledStage] = self._own.__dict__.setdefault("stages", {})
        if stage not in own:
            pieces = LATER_PIECES if stage else FIRST_PIECES
            own[stage] = CompiledStage(self._models[stage].outputs, partial(self._compile, stage), pieces)
        logits, *handed_on = own[stage].run([_pixels(images), *(each.contiguous() for each in carried)])
        return logits, tuple(handed_on)

    def _compile(self, stage: int, size: int) -> ov.CompiledModel:
        """Compile the stage for batches of ``size``."""
        model = self._models[stage].clone()
        model.reshape({port: ov.PartialShape([size, *port.partial_shape[1:]]) for port in model.inputs})
        return CORE.compile_model(model, "CPU", self._config)


class CompiledStage:
    """One stage, used by one thread. It is compiled for a few batch sizes, and splits other batches into these.

    In a model compiled for any batch size, each change of the size took half a millisecond.

    Args:
        ports: the stage's outputs.
        compile_: compiles the stage for one batch size.
        pieces: these sizes, largest first; the last is 1.
    """

    def __init__(
        self, ports: Sequence[Any], compile_: Callable[[int], ov.CompiledModel], pieces: Sequence[int]
    ) -> None:
        self._ports = ports
        self._compile = compile_
        self._sizes = pieces
        self._pieces: dict[int, _Piece] = {}
        self._outputs: list[Tensor] = []

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Inputs with B rows each -> outputs with B rows, which the next run overwrites; nothing is copied.

        Memory for the largest B so far is kept, because allocating new pages took a fifth of a small stage's time.
        """
        rows = len(inputs[0])
        if not self._outputs or rows > len(self._outputs[0]):
            self._outputs = [
                torch.empty((rows, *port.partial_shape.get_max_shape()[1:]), dtype=DTYPES[type_name(port)])
                for port in self._ports
            ]
            for piece in self._pieces.values():
                piece.write_to(self._outputs)
        first = 0
        for size in in_pieces(rows, self._sizes):
            part = inputs if size == rows else [tensor[first : first + size] for tensor in inputs]
            self._piece(size).run(first, part)
            first += size
        return [output[:rows] for output in self._outputs]

    def __del__(self) -> None:
        """Free the pieces one at a time. Each takes milliseconds with Python's lock; other threads run in between."""
        while self._pieces:
            self._pieces.popitem()

    def _piece(self, size: int) -> _Piece:
        if size not in self._pieces:
            self._pieces[size] = _Piece(self._compile(size).create_infer_request(), size, self._outputs)
        return self._pieces[size]


class _Piece:
    """A stage compiled for one batch size, which writes to rows of ``outputs``."""

    def __init__(self, request: ov.InferRequest, size: int, outputs: Sequence[Tensor]) -> None:
        self._request = request
        self._size = size
        self.write_to(outputs)

    def write_to(self, outputs: Sequence[Tensor]) -> None:
        """Write to these outputs from now on."""
        self._outputs = outputs
        self._first: int | None = None  # row that the request writes to
        self._rooms: dict[int, list[ov.Tensor]] = {}

    def run(self, first: int, inputs: Sequence[Tensor]) -> None:
        """Compute the rows from ``first`` on, from inputs of this size."""
        for index, tensor in enumerate(inputs):
            self._request.set_input_tensor(index, _shared(tensor))
        if first != self._first:
            if first not in self._rooms:
                self._rooms[first] = [_shared(output[first : first + self._size]) for output in self._outputs]
            for index, room in enumerate(self._rooms[first]):
                self._request.set_output_tensor(index, room)
            self._first = first
        self._request.infer()


def in_pieces(rows: int, pieces: Sequence[int]) -> list[int]:
    """``rows`` as a sum of as few ``pieces`` as possible; ``pieces`` are sorted, largest first."""
    sizes = []
    for size in pieces:
        sizes += [size] * (rows // size)
        rows %= size
    return sizes


def type_name(port: Any) -> str:
    """The element type of one of a model's ports."""
    name: str = port.get_element_type().get_type_name()
    return name


def _shared(tensor: Tensor) -> ov.Tensor:
    """The tensor as OpenVINO's, with the same memory."""
    if tensor.dtype == torch.bfloat16:  # which NumPy does not have
        return ov.Tensor(tensor.view(torch.uint16).numpy(), ov.Shape(list(tensor.shape)), ov.Type.bf16)
    return ov.Tensor(tensor.numpy(), shared_memory=True)


def _with_bfloat16_features(models: Sequence[ov.Model]) -> Sequence[ov.Model]:
    """``models``, changed to pass features in bfloat16, as computed: half as much memory to reorder."""
    for model in models:
        ports = PrePostProcessor(model)
        for index in range(1, len(model.outputs)):
            ports.output(index).tensor().set_element_type(ov.Type.bf16)
        for index in range(1, len(model.inputs)):
            ports.input(index).tensor().set_element_type(ov.Type.bf16)
        ports.build()
    return models


class _Stage(nn.Module):
    """uint8 (B, r, r, 3) and the previous stage's features -> logits, then the features for the next stage."""

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
    """uint8 (B, 3, R, R) -> (B, R, R, 3), without a copy if the memory is already in that order."""
    return images.permute(0, 2, 3, 1).contiguous()


def _convert(module: nn.Module, inputs: Sequence[Tensor]) -> ov.Model:
    """Convert the module to a model for any batch size."""
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
    """Free what PyTorch traced. Otherwise it keeps the traces, with all weights, even after a model is replaced."""
    torch._C._jit_clear_class_registry()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
