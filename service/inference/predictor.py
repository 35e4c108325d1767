"""A model on a device: pixels in, logits out, the low and the high pass each by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from service.errors import BrokenModel, InvalidOption
from service.images.transforms import Preprocessing
from service.networks.msnet import LowState, MSNet
from service.networks.registry import build
from service.store import SPEC, WEIGHTS, ModelSpec, read_spec, read_weights

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def choose_device(name: str) -> torch.device:
    """``auto`` -> CUDA where there is one, else the CPU; ``cpu``, ``cuda`` or ``cuda:N`` as asked.

    Raises:
        InvalidOption: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{device.type} is not supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidOption("device", name, f"auto, cpu or a CUDA device of this machine ({error})") from error
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """``auto`` -> bfloat16 where the device computes it fast, else float32; a precision's name as asked.

    Raises:
        InvalidOption: no precision of that name, or float16 on a CPU.
    """
    if name == "auto":
        return "bfloat16" if _has_fast_bfloat16(device) else "float32"
    if name not in PRECISIONS or (name == "float16" and device.type == "cpu"):
        raise InvalidOption("precision", name, "auto, float32, bfloat16, or float16 (CUDA only)")
    return name  # type: ignore[return-value]


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, 3, R, R) RGB -> float32 of the same shape, channels last, zero mean and unit variance by channel."""
    mean = torch.tensor(preprocessing.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(1, 3, 1, 1)
    scaled = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
    return scaled.sub_(mean).div_(std)


class Predictor:
    """Runs a network's passes on batches of decoded images. Synchronous; safe to share between threads.

    Args:
        network: multi-scale, or single-scale (then only ``single`` may be called).
        spec: of the model the network belongs to.
        device, precision: where and in what it computes.
    """

    runtime = "eager"

    def __init__(self, network: nn.Module, spec: ModelSpec, device: torch.device, precision: Precision) -> None:
        self.spec = spec
        self.device = device
        self.precision = precision
        self._dtype: torch.dtype = getattr(torch, precision)
        self._network = network.eval().to(device).to(memory_format=torch.channels_last)
        for module in self._network.modules():
            # Norms stay float32: a variance has no bits to spare. So does the classifier: in bfloat16 the two
            # highest logits were equal for some images, 3 of Imagenette's 3,925 with the shipped model.
            if isinstance(module, nn.Conv2d):
                module.to(self._dtype)

    @classmethod
    def load(cls, folder: Path, device: str = "auto", precision: str = "auto") -> Predictor:
        """The verified model in ``folder``.

        Raises:
            NotFound, BrokenModel: see ``store``; also weights that are not the network's.
            InvalidOption: device or precision not to be had.
        """
        spec = read_spec(folder)
        chosen = choose_device(device)
        return cls(load_network(folder, spec), spec, chosen, choose_precision(precision, chosen))

    @property
    def is_multi_scale(self) -> bool:
        """Whether there is a low pass to exit from."""
        return isinstance(self._network, MSNet)

    @torch.inference_mode()
    def low(self, images: Tensor) -> LowState:
        """uint8 (B, 3, R, R) -> low logits (B, K) and the features that ``high`` reuses, on the device."""
        assert isinstance(self._network, MSNet)
        return self._network.forward_low(self._prepare(images))

    @torch.inference_mode()
    def high(self, images: Tensor, low: LowState) -> Tensor:
        """The same images and their low state -> high logits (B, K), on the device."""
        assert isinstance(self._network, MSNet)
        return self._network.forward_high(self._prepare(images), low)

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both passes on everything: (low logits, high logits); of a single-scale network its logits twice."""
        if not self.is_multi_scale:
            logits = self.single(images)
            return logits, logits
        low = self.low(images)
        return low.logits, self.high(images, low)

    @torch.inference_mode()
    def single(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, R, R) -> logits (B, K) of a single-scale network, on the device."""
        logits: Tensor = self._network(self._prepare(images))
        return logits

    def _prepare(self, images: Tensor) -> Tensor:
        on_device = images.to(self.device, non_blocking=True)
        return normalise(on_device, self.spec.preprocessing).to(self._dtype)


def load_network(folder: Path, spec: ModelSpec) -> nn.Module:
    """The network of ``spec`` with the weights in ``folder``, float32 on the CPU. Raises as ``Predictor.load``."""
    architecture = spec.architecture
    weights = read_weights(folder, spec)
    try:
        network = build(architecture.network, architecture.num_classes, architecture.options)
    except InvalidOption as error:
        raise BrokenModel(f"{folder / SPEC}: {error.message}", field="model", value=str(folder)) from error
    foreign = sorted(_shapes(network.state_dict()) ^ _shapes(weights))
    if foreign:
        name, shape = foreign[0]
        raise BrokenModel(
            f"{folder / WEIGHTS} does not fit {architecture.network}: {name!r} {tuple(shape)} is in one of them only",
            field="model",
            value=str(folder),
        )
    network.load_state_dict(weights, strict=False)
    return network


def _shapes(state: Mapping[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
