"""ResNet-18 (He et al., "Deep Residual Learning for Image Recognition", 2015) in four blocks."""

from __future__ import annotations

from torch import Tensor, nn

from service.networks.backbone import Backbone, Block, initialise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, summed; a ReLU follows only if ``final_relu``.

    ``project`` puts a 1x1 convolution with batch norm on the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, project: bool, final_relu: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if project:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.final_relu = nn.ReLU(inplace=True) if final_relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> (B, C', H / stride, W / stride)."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.final_relu(residual + self.shortcut(x))
        return out


def resnet18(num_classes: int, projection: bool = True) -> Backbone:
    """ResNet-18 in four blocks: {stem, max-pool, conv2_x}, conv3_x, conv4_x, conv5_x.

    Args:
        num_classes: number of logits.
        projection: the first block of conv2_x has a projection shortcut 64 -> 64, the variant whose
            multiply-adds "High Frequency Residual Learning" reports; without it, the variant of torchvision.

    Raises:
        TypeError: ``projection`` is not a bool ("false" would otherwise count as True).
    """
    if not isinstance(projection, bool):
        raise TypeError(f"projection is {projection!r}; it must be true or false")
    stem = [
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    blocks = []
    inputs = 64
    for outputs in (64, 128, 256, 512):
        is_first = outputs == 64
        body = nn.Sequential(
            *(stem if is_first else []),
            BasicBlock(
                inputs,
                outputs,
                stride=1 if is_first else 2,
                project=projection if is_first else True,
                final_relu=True,
            ),
            BasicBlock(outputs, outputs, stride=1, project=False, final_relu=False),
        )
        blocks.append(Block(body, nn.ReLU()))
        inputs = outputs
    network = Backbone(blocks, nn.Identity(), num_features=512, num_classes=num_classes, stride=32)
    initialise(network)
    return network
