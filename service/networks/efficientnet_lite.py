"""EfficientNet-Lite0 in five blocks: EfficientNet-B0 without squeeze-and-excitation and with ReLU6, made for CPUs.

Architecture and padding are those of the TensorFlow release, so that its ImageNet weights can be loaded.
"""

from __future__ import annotations

from torch import Tensor, nn

from service.networks.backbone import Backbone, Block, initialise

# Stages of each block: (channels, layers, kernel). The first layer of every block but the first has stride 2.
LAYERS = (((16, 1, 3),), ((24, 2, 3),), ((40, 2, 5),), ((80, 3, 3), (112, 3, 5)), ((192, 4, 5), (320, 1, 3)))
STEM_CHANNELS = 32
EXPANSION = 6  # of every layer but the first, which expands nothing
POOLED_CHANNELS = 1280
DROPOUT = 0.2
EPSILON = 1e-3

# What the released weights expect of the RGB channels, scaled to 0..1.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: with an even side and a stride, more padding at the right and
    bottom.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        (top, bottom), (left, right) = (self._padding(side) for side in x.shape[-2:])
        return super().forward(nn.functional.pad(x, (left, right, top, bottom)))

    def _padding(self, side: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; the input is added if the shapes are equal."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = _norm_relu(nn.Conv2d(inputs, inner, 1, bias=False)) if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *_norm_relu(SameConv2d(inner, inner, kernel, stride, groups=inner)),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs, EPSILON),
        )
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.layers(x)
        return x + out if self.adds_input else out


def efficientnet_lite0(num_classes: int) -> Backbone:
    """EfficientNet-Lite0. No block ends with an activation; the last 1x1 convolution is the tail."""
    inputs = STEM_CHANNELS
    blocks = []
    for index, stages in enumerate(LAYERS):
        modules = _norm_relu(SameConv2d(3, inputs, 3, stride=2)) if index == 0 else []
        for position, (outputs, layers, kernel) in enumerate(stages):
            for layer in range(layers):
                stride = 2 if index > 0 and position == layer == 0 else 1
                modules.append(InvertedResidual(inputs, outputs, kernel, stride, EXPANSION if index > 0 else 1))
                inputs = outputs
        blocks.append(Block(nn.Sequential(*modules), nn.Identity()))
    tail = nn.Sequential(*_norm_relu(nn.Conv2d(inputs, POOLED_CHANNELS, 1, bias=False)))
    classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(POOLED_CHANNELS, num_classes))
    network = Backbone(blocks, tail, POOLED_CHANNELS, num_classes, stride=32, classifier=classifier)
    initialise(network)
    return network


def _norm_relu(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels, EPSILON), nn.ReLU6(inplace=True)]
