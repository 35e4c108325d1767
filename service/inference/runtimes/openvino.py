"""OpenVINO on the CPU: a whole pass is one call, outside Python's lock (``pip install lowfirst[openvino]``)."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import openvino as ov
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from openvino.preprocess import PrePostProcessor
from torch import Tensor, nn
from torch.nn.functional import conv2d

from service.errors import InvalidOption
from service.images.transforms import Preprocessing
from service.inference.device import Precision, cores
from service.inference.runtimes.base import normalise
from service.inference.runtimes.folding import fold_norms
from service.networks.msnet import LowState, MSNet
from service.store import ModelSpec, verified

# What is not quantised in an int8 model is computed in float32.
PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}

INT8_FOLDER = "openvino-int8"
STAGES = ("low", "high")

# One a process, never given back: OpenVINO's CPU plug-in gives the thread that loads it a stack for signals, and takes
# it away with itself. Of several, the last may leave that thread with one already freed: the next signal crashes.
CORE = ov.Core()


def convert(network: nn.Module, preprocessing: Preprocessing) -> dict[str, ov.Model]:
    """Each stage of ``network``, which is taken over: uint8 pixels (B, R, R, 3) in, any B; float32 out."""
    network = fold_norms(network)
    crop = preprocessing.crop
    images = torch.zeros(2, crop, crop, 3, dtype=torch.uint8)
    if not isinstance(network, MSNet):
        return {"single": _convert(_Single(network, preprocessing), [images])}
    low = _Low(network, preprocessing)
    with torch.inference_mode():
        _, *features = low(images)
    return {
        "low": _convert(low, [images]),
        "high": _convert(_High(network, preprocessing), [images, *features]),
    }


def quantised(folder: Path, spec: ModelSpec) -> dict[str, ov.Model]:
    """The int8 stages in a model folder.

    Raises:
        InvalidOption: the model has none.
        BrokenModel: they are not what its spec says.
    """
    if not spec.files:
        raise InvalidOption("precision", "int8", f"another one: {spec.name} has not been quantised (lowfirst quantise)")
    for name, digest in spec.files.items():
        verified(folder, name, digest)
    return {stage: CORE.read_model(folder / INT8_FOLDER / f"{stage}.xml") for stage in STAGES}


class OpenVINORuntime:
    """Runs ``models``, as ``convert`` gives them or ``quantised`` reads them.

    Each thread that calls gets compiled stages of its own, with one stream of ``threads`` threads: two such ran
    MS-MobileNetV1-0.5 at 2,250 images/s where two streams of one compiled model ran 1,700.
    """

    name = "openvino"

    def __init__(self, models: Mapping[str, ov.Model], precision: Precision, threads: int) -> None:
        self._models = _with_bfloat16_features(models) if precision == "bfloat16" else models
        self._threads = threads
        self._hint = PRECISION_HINTS[precision]
        self._own = threading.local()
        self._wide = threading.Lock()
        self._wide_stages: dict[str, Stage] = {}

    def low(self, images: Tensor, wide: bool = False) -> LowState:
        """See ``Runtime``."""
        logits, *features = self._run("low", [_pixels(images)], wide)
        return LowState(logits, tuple(features))

    def high(self, images: Tensor, low: LowState, wide: bool = False) -> Tensor:
        """See ``Runtime``."""
        features = [feature.contiguous() for feature in low.features]
        return self._run("high", [_pixels(images), *features], wide)[0]

    def single(self, images: Tensor) -> Tensor:
        """See ``Runtime``."""
        return self._run("single", [_pixels(images)])[0]

    def _run(self, name: str, inputs: Sequence[Tensor], wide: bool = False) -> list[Tensor]:
        if not wide:
            return self._own_stage(name).run(inputs)
        with self._wide:  # one for all threads: two at a time would not be alone on the machine
            if name not in self._wide_stages:
                self._wide_stages[name] = self._compile(name, cores())
            return self._wide_stages[name].run(inputs)

    def _own_stage(self, name: str) -> Stage:
        stage: Stage | None = getattr(self._own, name, None)
        if stage is None:
            stage = self._compile(name, self._threads)
            setattr(self._own, name, stage)
        return stage

    def _compile(self, name: str, threads: int) -> Stage:
        config = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
        }
        return Stage(CORE.compile_model(self._models[name], "CPU", config))


class Stage:
    """One compiled pass with one request, used by one thread at a time."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = [
            (tuple(port.partial_shape.get_max_shape())[1:], DTYPES[port.get_element_type().get_type_name()])
            for port in compiled.outputs
        ]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Inputs with B rows each -> outputs with B rows, in fresh memory; nothing else is copied."""
        outputs = [torch.empty((len(inputs[0]), *shape), dtype=dtype) for shape, dtype in self._outputs]
        for index, tensor in enumerate(inputs):
            self._request.set_input_tensor(index, _shared(tensor))
        for index, tensor in enumerate(outputs):
            self._request.set_output_tensor(index, _shared(tensor))
        self._request.infer()
        return outputs


def _shared(tensor: Tensor) -> ov.Tensor:
    """The same memory."""
    if tensor.dtype == torch.bfloat16:  # which NumPy does not have
        return ov.Tensor(tensor.view(torch.uint16).numpy(), ov.Shape(list(tensor.shape)), ov.Type.bf16)
    return ov.Tensor(tensor.numpy(), shared_memory=True)


def _with_bfloat16_features(models: Mapping[str, ov.Model]) -> dict[str, ov.Model]:
    """``models``, which are changed, handing over features as they were computed: half the memory to reorder."""
    for model in models.values():
        ports = PrePostProcessor(model)
        for index in range(1, len(model.outputs)):
            ports.output(index).tensor().set_element_type(ov.Type.bf16)
        for index in range(1, len(model.inputs)):
            ports.input(index).tensor().set_element_type(ov.Type.bf16)
        ports.build()
    return dict(models)


class _Low(nn.Module):
    """uint8 (B, R, R, 3) -> low logits, then each feature map.

    Normalised and halved by one convolution: as operators of their own both took as long as a third of a small network.
    """

    _weight: Tensor
    _bias: Tensor

    def __init__(self, network: MSNet, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._network = network
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("_weight", torch.diag(1 / (255 * std))[:, :, None, None].expand(3, 3, 2, 2) / 4)
        self.register_buffer("_bias", -mean / std)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        images = pixels.to(torch.float32).permute(0, 3, 1, 2)
        halved = conv2d(images, self._weight, self._bias, stride=2)
        state = self._network.forward_halved(halved)
        return state.logits, *state.features


class _High(nn.Module):
    """uint8 (B, R, R, 3) and the feature maps -> high logits."""

    def __init__(self, network: MSNet, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._network = network
        self._preprocessing = preprocessing

    def forward(self, pixels: Tensor, *features: Tensor) -> Tensor:
        return self._network.forward_high(_normal(pixels, self._preprocessing), LowState(pixels, features))


class _Single(nn.Module):
    """uint8 (B, R, R, 3) -> logits."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._network = network
        self._preprocessing = preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self._network(_normal(pixels, self._preprocessing))
        return logits


def _normal(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    return normalise(pixels.permute(0, 3, 1, 2), preprocessing)


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
