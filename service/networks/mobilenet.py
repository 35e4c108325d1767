"""MobileNetV1 (Howard et al., arXiv 1704.04861) in five blocks, each opened by a stride-2 convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from service.networks.backbone import Backbone, Block, initialise

# Output channels of the depthwise separable layers of each block, at width multiplier 1.
LAYERS = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))
STEM_CHANNELS = 32


class DepthwiseConv2d(nn.Conv2d):
    """A 3x3 convolution of each channel by itself.

    On a CPU in bfloat16 the gradient of a strided one falls to a reference kernel some fifty times slower
    than the unstrided one's. There, in training, the same values are computed by striding afterwards: a
    training step of MS-MobileNetV1-0.5 at 192 pixels took 8.7 ms an image before, 5.3 ms so (two cores).
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        stride = self.stride[0]
        if stride > 1 and torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype == torch.bfloat16:
            unstrided = nn.functional.conv2d(x, self.weight, padding=self.padding, groups=self.groups)
            return unstrided[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)
        return super().forward(x)


def mobilenet_v1(num_classes: int, alpha: float = 1.0) -> Backbone:
    """MobileNetV1 with every channel count multiplied by ``alpha``."""
    inputs = round(STEM_CHANNELS * alpha)
    blocks = []
    for index, layers in enumerate(LAYERS):
        modules: list[nn.Module] = []
        for position, channels in enumerate(layers):
            outputs = round(channels * alpha)
            if index == 0:
                modules += _norm_relu(nn.Conv2d(3, inputs, 3, stride=2, padding=1, bias=False))
            stride = 2 if index > 0 and position == 0 else 1
            modules += _norm_relu(DepthwiseConv2d(inputs, stride))
            modules += _norm_relu(nn.Conv2d(inputs, outputs, 1, bias=False))
            inputs = outputs
        last_relu = modules.pop()
        blocks.append(Block(nn.Sequential(*modules), last_relu))
    network = Backbone(blocks, nn.Identity(), num_features=inputs, num_classes=num_classes, stride=32)
    initialise(network)
    return network


def _norm_relu(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]
