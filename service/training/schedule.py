"""The learning rate over a run, and which parameters decay."""

from __future__ import annotations

import math

from torch import nn

from service.training.options import TrainOptions


def learning_rate(options: TrainOptions, epoch: float) -> float:
    """The learning rate at ``epoch`` (a fraction within an epoch, from 0)."""
    if options.schedule == "step":
        passed = sum(epoch >= options.epochs * quarter / 4 for quarter in (1, 2, 3))
        return options.learning_rate / 10.0**passed
    done = epoch / options.epochs
    if done < options.warmup:
        return options.learning_rate * done / options.warmup
    progress = (done - options.warmup) / max(1 - options.warmup, 1e-9)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups for an optimiser: weights that decay, and norms, biases and depthwise convolutions, which do not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels
            decays = isinstance(module, nn.Conv2d | nn.Linear) and not is_depthwise and name == "weight"
            (decayed if decays else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
