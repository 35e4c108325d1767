"""MobileNetV1 (Howard et al., arXiv 1704.04861) in five blocks, each of which starts with a stride-2 convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from service.networks.backbone import Backbone, Block, initialise

# Output channels of the depthwise separable layers of each block, at width multiplier 1.
LAYERS = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))
STEM_CHANNELS = 32


class DepthwiseConv2d(nn.Conv2d):
    """A 3x3 convolution of each channel separately.

    On a CPU in bfloat16, PyTorch computes the gradient of a strided convolution with a reference kernel, about fifty
    times slower than that of an unstrided one. So in training the convolution is unstrided, and its output is strided
    afterwards, with the same values. This reduced a training step of MS-MobileNetV1-0.5 at 192 pixels from 8.7 ms to
    5.3 ms per image (two cores).
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
