"""Multiply-adds of convolutions and linear layers: what papers call FLOPs.

``torch.utils.flop_counter`` counts a multiply-add as two operations, hence the halving.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from service.networks.msnet import MSNet
from service.networks.registry import build


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-adds of one image. A single-scale network has all its cost in ``high``, and ``low`` is 0."""

    low: int
    high: int

    @property
    def low_mmacs(self) -> float:
        """Millions of multiply-adds of the low pass."""
        return self.low / 1e6

    @property
    def high_mmacs(self) -> float:
        """Millions of multiply-adds of the high pass alone, which equals the single-scale network's."""
        return self.high / 1e6

    def mean_mmacs(self, exit_rate: float) -> float:
        """Mean millions of multiply-adds an image when the share ``exit_rate`` of images stops after the low pass."""
        return self.low_mmacs + (1 - exit_rate) * self.high_mmacs


def cost(name: str, num_classes: int, resolution: int, options: dict[str, object] | None = None) -> Cost:
    """The cost of network ``name`` at high resolution ``resolution``; shapes alone are computed, no pixels."""
    with torch.device("meta"), torch.no_grad():
        network = build(name, num_classes, options).eval()
        image = torch.empty(1, 3, resolution, resolution)
        if not isinstance(network, MSNet):
            with FlopCounterMode(display=False) as counter:
                network(image)
            return Cost(0, counter.get_total_flops() // 2)
        with FlopCounterMode(display=False) as counter:
            low = network.forward_low(image)
        low_flops = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            network.forward_high(image, low)
        return Cost(low_flops // 2, counter.get_total_flops() // 2)
