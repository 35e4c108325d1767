"""The multi-scale network: a cheap network at a low resolution, and more expensive ones that learn the residual.

Source: Cheng, Xiao, Wang, Huang, Zhang, "High Frequency Residual Learning for Multi-Scale Image
Classification", BMVC 2019, which has two stages. With ``u`` = nearest-neighbour upsampling by 2, stage s after
every block i:

    x_s[i+1] = H_s,i(x_s[i]) + u(x_s-1[i+1])        (the first stage has nothing to add)

``gated`` multiplies each channel of the added features by a gate that starts at zero. So at first every stage computes
the same as its base network alone, and a stage that starts from trained weights loses no accuracy. ReZero (Bachlechner
et al., "ReZero is All You Need", 2021) does the same with the branches of residual blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from service.networks.backbone import Backbone, Block
from service.networks.cascade import Carried, Cascade

Fusion = Literal["before_relu", "after_relu"]
FUSIONS: tuple[str, ...] = get_args(Fusion)

# What the stages of a network of so many scales are called, on the wire and in the weights file.
STAGE_NAMES: dict[int, tuple[str, ...]] = {
    1: ("single",),
    2: ("low", "high"),
    3: ("low", "middle", "high"),
}


class MSNet(Cascade):
    """Copies of a base network with separate weights and norms. Each except the first adds the previous one's features.

    Args:
        backbones: one per stage, cheapest first; equal numbers of blocks and equal channels.
        fusion: where the features are added. ``before_relu`` adds before a block's last activation, so that a stage can
            subtract; ``after_relu`` is exactly the paper's formula.
        gated: whether the previous stage's features are scaled by gates that start at zero.
    """

    def __init__(self, backbones: Sequence[Backbone], fusion: Fusion = "before_relu", gated: bool = False) -> None:
        super().__init__()
        if not isinstance(gated, bool):
            raise ValueError(f"gated is {gated!r}; it must be true or false")
        if fusion not in FUSIONS:
            raise ValueError(f"fusion is {fusion!r}; it must be one of {', '.join(FUSIONS)}")
        self.names = STAGE_NAMES[len(backbones)]
        self.scales = tuple(2**power for power in reversed(range(len(backbones))))
        self.fusion = fusion
        for name, backbone in zip(self.names, backbones, strict=True):
            self.add_module(name, backbone)
        self.gates = nn.ModuleDict()  # of every stage but the first, one (C, 1, 1) for each block
        for name, backbone in zip(self.names[1:], backbones[1:] if gated else (), strict=False):
            self.gates[name] = nn.ParameterList(torch.zeros(channels, 1, 1) for channels in _channels(backbone))

    def backbone(self, stage: int) -> Backbone:
        """The copy of the base network that runs ``stage``."""
        found = self.get_submodule(self.names[stage])
        assert isinstance(found, Backbone)
        return found

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """See ``Cascade``. Each block passes its output to the next stage. The last block passes only the mean (B, C)
        if that is enough.
        """
        backbone = self.backbone(stage)
        taken = self.taken(stage, carried)
        below: Sequence[Tensor | None] = taken or (None,) * len(backbone.blocks)
        x, outputs = images, []
        for block, given in zip(backbone.blocks, below, strict=True):
            x = block(x) if given is None or given.dim() == 2 else self.add(block, *self.summands(block, x, given))
            outputs.append(x)
        pooled = backbone.pool(x)
        if taken and taken[-1].dim() == 2:  # mean(H + u(L)) = mean(H) + mean(L): the upsampled map is never needed
            pooled = pooled + taken[-1]
        logits = backbone.classify(pooled)
        if stage == self.depth - 1:
            return logits, ()
        if self._takes_pooled(stage + 1, images.shape[-2:], x.shape[-2:]):
            outputs[-1] = pooled
        return logits, tuple(outputs)

    def taken(self, stage: int, carried: Carried) -> Carried:
        """``carried`` as ``stage`` adds it, before upsampling: scaled by the stage's gates, if it has any."""
        if self.names[stage] not in self.gates:
            return carried
        gates = self.gates.get_submodule(self.names[stage]).parameters()
        return tuple(
            given * (gate if given.dim() == 4 else gate.flatten()).to(given.dtype)
            for given, gate in zip(carried, gates, strict=True)
        )

    def summands(self, block: nn.Module, x: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        """A block's output before the sum, and the upsampled features of the previous stage: (B, C, H, W) each."""
        assert isinstance(block, Block)
        own: Tensor = block.body(x) if self.fusion == "before_relu" else block(x)
        return own, upsample(below, own.shape[-2:])

    def add(self, block: nn.Module, own: Tensor, given: Tensor) -> Tensor:
        """A block's output, computed from its summands."""
        assert isinstance(block, Block)
        total = own + given
        return block.activation(total) if self.fusion == "before_relu" else total

    def _takes_pooled(self, stage: int, below: torch.Size, last: torch.Size) -> bool:
        """Whether ``stage`` needs only the mean of the previous stage's last map.

        This is so if it is the last stage, no module is between its last sum and the pooling, and the upsampled map has
        exactly the right size.

        Args:
            below: input size of the previous stage. ``last``: size of its last map.
        """
        backbone = self.backbone(stage)
        return (
            stage == self.depth - 1
            and self.fusion == "after_relu"
            and isinstance(backbone.tail, nn.Identity)
            and all(-(-2 * side // backbone.stride) == 2 * size for side, size in zip(below, last, strict=True))
        )


def _channels(backbone: Backbone) -> Iterator[int]:
    """Number of channels of every block's output; only shapes are computed."""
    x = torch.empty(1, 3, 64, 64, device="meta")
    for block in copy.deepcopy(backbone).to("meta").eval().blocks:
        x = block(x)
        yield x.shape[1]


def upsample(x: Tensor, size: torch.Size) -> Tensor:
    """``x`` (B, C, h, w) doubled by nearest neighbour, cropped or zero-padded at the bottom and right to ``size``."""
    x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    height, width = size
    bottom, right = height - x.shape[-2], width - x.shape[-1]
    if bottom or right:
        x = nn.functional.pad(x, (0, right, 0, bottom))  # a negative pad crops
    return x
