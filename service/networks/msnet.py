"""The multi-scale network: a low network at half resolution, a high network that learns the rest.

Source: Cheng, Xiao, Wang, Huang, Zhang, "High Frequency Residual Learning for Multi-Scale Image
Classification", BMVC 2019. With ``u`` = nearest-neighbour upsampling by 2, after every block i:

    low:   x_L[i+1] = L_i(x_L[i])
    high:  x_H[i+1] = H_i(x_H[i]) + u(x_L[i+1])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from service.networks.backbone import Backbone, Block, halve

Fusion = Literal["before_relu", "after_relu"]
FUSIONS: tuple[str, ...] = get_args(Fusion)


@dataclass(frozen=True, slots=True)
class LowState:
    """What a low pass leaves behind.

    Attributes:
        logits: (B, num_classes).
        features: the output of each low block (B, C_i, H_i, W_i), which the high pass reuses. Where only
            the mean of the last one is needed, it is that mean, (B, C).
    """

    logits: Tensor
    features: tuple[Tensor, ...]

    def rows(self, index: Tensor) -> LowState:
        """Copies of the rows in ``index`` (int64), in that order; keeps nothing of the batch alive."""
        return LowState(self.logits[index], tuple(feature[index] for feature in self.features))


class MSNet(nn.Module):
    """Two copies of a base network, separate weights and norms; the high one receives the low one's features.

    Args:
        low, high: the two copies; equal numbers of blocks and equal channels.
        fusion: where the sum is taken. ``before_relu`` adds before a block's last activation, so that
            the high network can subtract; ``after_relu`` is the paper's formula to the letter.

    Both passes take the same normalised images (B, 3, R, R), R even: halving is the network's own work.
    """

    def __init__(self, low: Backbone, high: Backbone, fusion: Fusion = "before_relu") -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion is {fusion!r}; it must be one of {', '.join(FUSIONS)}")
        self.low = low
        self.high = high
        self.fusion = fusion

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both passes, as in training: (low logits, high logits), each (B, num_classes)."""
        low = self.forward_low(x)
        return low.logits, self.forward_high(x, low)

    def forward_low(self, x: Tensor) -> LowState:
        """Images (B, 3, R, R) -> the low answer at R / 2 and the features to reuse."""
        return self.forward_halved(halve(x))

    def forward_halved(self, x: Tensor) -> LowState:
        """The same of images that are (B, 3, R / 2, R / 2) already."""
        resolution = torch.Size(2 * side for side in x.shape[-2:])
        features = []
        for block in self.low.blocks:
            x = block(x)
            features.append(x)
        pooled = self.low.pool(x)
        if self._last_sum_is_pooled(resolution, x.shape[-2:]):
            features[-1] = pooled
        return LowState(self.low.classify(pooled), tuple(features))

    def forward_high(self, x: Tensor, low: LowState) -> Tensor:
        """Images (B, 3, R, R) and their low state -> high logits (B, num_classes)."""
        *inner, last = zip(self.high.blocks, low.features, strict=True)
        for block, feature in inner:
            x = self.add(block, *self.summands(block, x, feature))
        block, feature = last
        if feature.dim() == 2:  # mean(H + u(L)) = mean(H) + mean(L): the upsampled map is never needed
            return self.high.classify(self.high.pool(block(x)) + feature)
        return self.high.classify(self.high.pool(self.add(block, *self.summands(block, x, feature))))

    def summands(self, block: nn.Module, x: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """What a high block makes of its input, and what it is given from below: (B, C, H, W) each."""
        assert isinstance(block, Block)
        own: Tensor = block.body(x) if self.fusion == "before_relu" else block(x)
        return own, upsample(feature, own.shape[-2:])

    def add(self, block: nn.Module, own: Tensor, given: Tensor) -> Tensor:
        """A high block's output from its summands."""
        assert isinstance(block, Block)
        total = own + given
        return block.activation(total) if self.fusion == "before_relu" else total

    def _last_sum_is_pooled(self, resolution: torch.Size, low_size: torch.Size) -> bool:
        """Nothing stands between the last sum and the pooling, and the upsampled map would fit exactly."""
        return (
            self.fusion == "after_relu"
            and isinstance(self.high.tail, nn.Identity)
            and all(-(-r // self.high.stride) == 2 * s for r, s in zip(resolution, low_size, strict=True))
        )


def upsample(x: Tensor, size: torch.Size) -> Tensor:
    """``x`` (B, C, h, w) doubled by nearest neighbour, cropped or zero-padded at the bottom and right to ``size``."""
    x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    height, width = size
    bottom, right = height - x.shape[-2], width - x.shape[-1]
    if bottom or right:
        x = nn.functional.pad(x, (0, right, 0, bottom))  # a negative pad crops
    return x
