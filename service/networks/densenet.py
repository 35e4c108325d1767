"""DenseNet-121 (Huang et al., "Densely Connected Convolutional Networks", 2016) in four blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from service.networks.backbone import Backbone, Block, initialise

GROWTH = 32
BOTTLENECK = 4 * GROWTH
LAYERS = (6, 12, 24, 16)
STEM_CHANNELS = 64


class DenseLayer(nn.Module):
    """norm-ReLU-1x1, norm-ReLU-3x3; its ``GROWTH`` new channels are appended to those of the input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, BOTTLENECK, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK)
        self.conv2 = nn.Conv2d(BOTTLENECK, GROWTH, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> (B, C + GROWTH, H, W)."""
        new = self.conv1(self.relu(self.norm1(x)))
        new = self.conv2(self.relu(self.norm2(new)))
        return torch.cat((x, new), dim=1)


def densenet121(num_classes: int) -> Backbone:
    """DenseNet-121: {stem, dense block}, then three times {transition, dense block}.

    Each block ends with its concatenated maps (256, 512, 1024, 1024 channels); the norm and ReLU that follow are the
    start of the next block, or the tail.
    """
    channels = STEM_CHANNELS
    opening: list[nn.Module] = [
        nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    blocks = []
    for layers in LAYERS:
        dense = [DenseLayer(channels + GROWTH * layer) for layer in range(layers)]
        blocks.append(Block(nn.Sequential(*opening, *dense), nn.Identity()))
        channels += GROWTH * layers
        opening = [
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels // 2, 1, bias=False),
            nn.AvgPool2d(2),
        ]
        if layers != LAYERS[-1]:
            channels //= 2
    tail = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
    network = Backbone(blocks, tail, num_features=channels, num_classes=num_classes, stride=32)
    initialise(network)
    return network
