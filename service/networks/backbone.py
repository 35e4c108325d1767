"""The parts of every base network: blocks (cut at its stride-2 convolutions), a tail, a classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from service.networks.cascade import Carried, Cascade


class Block(nn.Module):
    """One resolution of a base network: ``body`` up to its last activation, then ``activation``.

    They are separate so that a multi-scale network can add lower-resolution features between them.
    """

    def __init__(self, body: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> (B, C', H', W')."""
        out: Tensor = self.activation(self.body(x))
        return out


class Backbone(Cascade):
    """A single-scale classifier, a cascade of one stage: blocks -> tail -> global average pooling -> classifier.

    Args:
        blocks: in order; H and W shrink from block to block.
        tail: the modules between the last block and the pooling (DenseNet's final norm and ReLU, MobileNetV2's last 1x1
            convolution); identity if there are none.
        num_features: channels that are pooled.
        num_classes: number of logits.
        stride: input pixels per pixel of the last map.
        classifier: pooled features (B, num_features) -> logits; None means one linear layer.
    """

    scales = (1,)

    def __init__(
        self,
        blocks: list[Block],
        tail: nn.Module,
        num_features: int,
        num_classes: int,
        stride: int,
        classifier: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.tail = tail
        self.classifier = nn.Linear(num_features, num_classes) if classifier is None else classifier
        self.num_classes = num_classes
        self.stride = stride

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:  # noqa: ARG002
        """See ``Cascade``."""
        x = images
        for block in self.blocks:
            x = block(x)
        return self.classify(self.pool(x)), ()

    def pool(self, features: Tensor) -> Tensor:
        """Last block's map (B, C, H, W) -> pooled features (B, C), in float32 or a wider type."""
        features = self.tail(features)
        return features.mean(dim=(2, 3), dtype=torch.promote_types(features.dtype, torch.float32))

    def classify(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, C) -> logits (B, num_classes)."""
        logits: Tensor = self.classifier(pooled)
        return logits


def initialise(network: nn.Module) -> None:
    """He initialisation of convolutions (fan out), small normal for the classifier, as in the ResNet paper's code."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
