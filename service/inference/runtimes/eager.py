"""PyTorch, operator by operator. It runs on every device and needs no other package."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from service.inference.device import Precision
from service.inference.runtimes.base import channels, normalise
from service.inference.runtimes.folding import fold_norms
from service.model_spec import ModelSpec
from service.networks.cascade import Carried, Cascade


class EagerRuntime:
    """``network`` on ``device`` in ``precision``, channels last, with folded norms. It may change the network.

    On a CPU, each calling thread runs one batch with one intra-op thread. All share one copy of the weights.
    """

    name = "eager"

    def __init__(self, network: Cascade, spec: ModelSpec, device: torch.device, precision: Precision) -> None:
        self.device = device
        self._channels = [channels(spec, stage) for stage in range(spec.depth)]
        self._dtype: torch.dtype = getattr(torch, precision)
        self._network = fold_norms(network).to(device).to(memory_format=torch.channels_last)
        for module in self._network.modules():
            # Norms stay float32: a variance has no bits to spare. So does the classifier: in bfloat16 the two
            # highest logits were equal for some images, 3 of Imagenette's 3,925 with the shipped model.
            if isinstance(module, nn.Conv2d):
                module.to(self._dtype)

    @torch.inference_mode()
    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """See ``Runtime``."""
        on_device = images.to(self.device, non_blocking=True)
        prepared = normalise(on_device, self._channels[stage]).to(self._dtype)
        return self._network.run(stage, prepared, carried)
