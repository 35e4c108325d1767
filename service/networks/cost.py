"""Multiply-adds of convolutions and linear layers: what papers call FLOPs.

``torch.utils.flop_counter`` counts a multiply-add as two operations, so its counts are halved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from service.networks.cascade import Carried, Cascade
from service.networks.registry import build, resolutions


def cost(name: str, num_classes: int, resolution: int, options: Mapping[str, Any] | None = None) -> tuple[float, ...]:
    """Millions of multiply-adds of each single stage of network ``name``, whose last stage runs at ``resolution``.

    The last stage of a multi-scale network has the multiply-adds of the single-scale network.
    """
    with torch.device("meta"):
        network = build(name, num_classes, options)
    return stage_costs(network, resolutions(name, resolution))


@torch.no_grad()
def stage_costs(network: Cascade, sides: Sequence[int]) -> tuple[float, ...]:
    """The same for a network whose parameters are on the meta device: only shapes are computed."""
    network.eval()
    carried: Carried = ()
    found = []
    for stage, side in enumerate(sides):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            _, carried = network.run(stage, torch.empty(1, 3, side, side), carried)
        found.append(counter.get_total_flops() // 2 / 1e6)
    return tuple(found)
