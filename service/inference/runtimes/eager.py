"""PyTorch, operator by operator: on every device, with nothing else installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from service.images.transforms import Preprocessing
from service.inference.device import Precision, cores
from service.inference.runtimes.base import normalise
from service.inference.runtimes.folding import fold_norms
from service.networks.backbone import halve
from service.networks.msnet import LowState, MSNet


class EagerRuntime:
    """``network`` on ``device`` in ``precision``, channels last, norms folded. Takes the network over.

    On a CPU, threads that each run one batch with one intra-op thread share one copy of the weights.
    """

    name = "eager"

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, device: torch.device, precision: Precision
    ) -> None:
        self.device = device
        self._preprocessing = preprocessing
        self._dtype: torch.dtype = getattr(torch, precision)
        self._network = fold_norms(network).to(device).to(memory_format=torch.channels_last)
        for module in self._network.modules():
            # Norms stay float32: a variance has no bits to spare. So does the classifier: in bfloat16 the two
            # highest logits were equal for some images, 3 of Imagenette's 3,925 with the shipped model.
            if isinstance(module, nn.Conv2d):
                module.to(self._dtype)

    @torch.inference_mode()
    def low(self, images: Tensor, wide: bool = False) -> LowState:
        """See ``Runtime``."""
        assert isinstance(self._network, MSNet)
        with _threads(wide):
            halved = halve(images.to(self.device, non_blocking=True).float())
            return self._network.forward_halved(self._prepare(halved))  # a quarter of the pixels to normalise

    @torch.inference_mode()
    def high(self, images: Tensor, low: LowState, wide: bool = False) -> Tensor:
        """See ``Runtime``."""
        assert isinstance(self._network, MSNet)
        with _threads(wide):
            return self._network.forward_high(self._prepare(images), low)

    @torch.inference_mode()
    def single(self, images: Tensor) -> Tensor:
        """See ``Runtime``."""
        logits: Tensor = self._network(self._prepare(images))
        return logits

    def _prepare(self, images: Tensor) -> Tensor:
        on_device = images.to(self.device, non_blocking=True)
        return normalise(on_device, self._preprocessing).to(self._dtype)


@contextmanager
def _threads(wide: bool) -> Iterator[None]:
    """Let this thread's operators use every core for a while, if ``wide``."""
    before = torch.get_num_threads()
    if wide:
        torch.set_num_threads(cores())
    try:
        yield
    finally:
        if wide:
            torch.set_num_threads(before)
