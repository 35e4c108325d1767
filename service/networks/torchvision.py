"""torchvision's classification networks, cut into blocks where the feature map halves.

There is no table per network: the cuts are found by passing shapes through the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from service.networks.backbone import Backbone, Block

# By torchvision's own names.
NAMES = (
    "resnet34",
    "resnet50",
    "resnet101",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_v2_s",
    "convnext_tiny",
    "regnet_y_400mf",
    "regnet_y_800mf",
    "regnet_y_1_6gf",
)

SIDE = 256  # pixels of the image whose shapes are followed: any that 32 divides would do

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)


def original(name: str, num_classes: int) -> nn.Module:
    """torchvision's own network ``name`` on the default device, freshly initialised."""
    from torchvision.models import get_model  # here, since most commands do without it

    # A RegNet works out its widths with tensors, and so cannot be made on the meta device, as costs are.
    with torch.device("cpu") if name.startswith("regnet") else nullcontext():
        network: nn.Module = get_model(name, weights=None, num_classes=num_classes)
    return network.to(torch.get_default_device())


def torchvision_backbone(name: str, num_classes: int) -> Backbone:
    """torchvision's network ``name``, one of ``NAMES``, freshly initialised as in torchvision.

    It has torchvision's modules and parameters in the same order, so torchvision's weights can be loaded (see
    ``pretrained``).
    """
    network, cut = original(name, num_classes), _cut(name)

    def chain(paths: tuple[str, ...]) -> nn.Sequential:
        return nn.Sequential(*(network.get_submodule(path) for path in paths))

    return Backbone(
        [Block(*split_activation(chain(paths))) for paths in cut.blocks],
        chain(cut.tail) if cut.tail else nn.Identity(),
        num_features=cut.num_features,
        num_classes=num_classes,
        stride=cut.stride,
        classifier=_classifier(chain(cut.head), cut.num_features),
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """The modules of a network that form its blocks, its tail and the part after the pooling, as paths, in order."""

    blocks: tuple[tuple[str, ...], ...]
    tail: tuple[str, ...]
    head: tuple[str, ...]
    num_features: int
    stride: int


@cache
def _cut(name: str) -> Cut:
    """The cuts of torchvision's network ``name``, found from its shapes.

    The network's children are assumed to run one after another: features, global average pooling, head. A new block
    begins at each part that has weights and halves the map. Parts at the end that process each pixel separately are the
    tail.
    """
    with torch.device("meta"), torch.no_grad():
        children = list(original(name, num_classes=2).eval().named_children())
        is_pooling = [isinstance(child, nn.AdaptiveAvgPool2d) for _, child in children]
        end = is_pooling.index(True) if any(is_pooling) else len(children) - 1  # MobileNetV2 pools by a function
        parts = _parts(children[:end], torch.empty(1, 3, SIDE, SIDE))
    last = parts[-1].after
    tail: list[str] = []
    while _sees_one_pixel(parts[-1].module):
        tail.insert(0, parts.pop().path)
    blocks: list[list[str]] = []
    for part in parts:
        if not blocks or (part.halves and any(True for _ in part.module.parameters())):
            blocks.append([])
        blocks[-1].append(part.path)
    head = [path for path, child in children[end:] if not isinstance(child, nn.AdaptiveAvgPool2d)]
    return Cut(tuple(map(tuple, blocks)), tuple(tail), tuple(head), last.shape[1], SIDE // last.shape[-1])


@dataclass(frozen=True, slots=True)
class _Part:
    """A module and the shapes of its maps."""

    path: str
    module: nn.Module
    before: Tensor
    after: Tensor

    @property
    def halves(self) -> bool:
        return self.after.shape[-1] < self.before.shape[-1]


def _parts(modules: Iterable[tuple[str, nn.Module]], x: Tensor) -> list[_Part]:
    """``modules`` in order; a sequence that halves the map more than once is replaced by its modules."""
    parts = []
    for path, module in modules:
        inner: list[_Part] = []
        if isinstance(module, nn.Sequential):
            inner = _parts(((f"{path}.{name}", child) for name, child in module.named_children()), x)
        after = inner[-1].after if inner else module(x)
        parts += inner if inner and x.shape[-1] > 2 * after.shape[-1] else [_Part(path, module, x, after)]
        x = after
    return parts


def _sees_one_pixel(part: nn.Module) -> bool:
    return all(module.kernel_size == (1, 1) for module in part.modules() if isinstance(module, nn.Conv2d))


def split_activation(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """``module`` -> the part before its last activation, and that activation; identity if it does not end with one."""
    from torchvision.models.regnet import ResBottleneckBlock
    from torchvision.models.resnet import BasicBlock, Bottleneck

    if isinstance(module, ACTIVATIONS):
        return nn.Identity(), module
    if isinstance(module, nn.Sequential):
        *before, last = module
        body, activation = split_activation(last)
        return nn.Sequential(*before, body), activation
    if isinstance(module, ResBottleneckBlock):
        activation, module.activation = module.activation, nn.Identity()
        return module, activation
    if isinstance(module, BasicBlock | Bottleneck):
        return Residual(module), nn.ReLU(inplace=True)
    return module, nn.Identity()


class Residual(nn.Module):
    """A block of torchvision's ResNets without its last ReLU. (In torchvision the block uses one ReLU object several
    times.)
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        layers = [block.conv1, block.bn1, nn.ReLU(inplace=True), block.conv2, block.bn2]
        if hasattr(block, "conv3"):
            layers += [nn.ReLU(inplace=True), block.conv3, block.bn3]
        self.layers = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity() if block.downsample is None else block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> (B, C', H / stride, W / stride), values may be negative."""
        out: Tensor = self.layers(x) + self.shortcut(x)
        return out


def _classifier(head: nn.Sequential, num_features: int) -> nn.Module:
    """The modules after the pooling (``head``), for pooled features (B, C)."""
    layers = [layer for part in head for layer in (part if isinstance(part, nn.Sequential) else [part])]
    if any(isinstance(layer, nn.Flatten) for layer in layers):  # ConvNeXt: a norm of maps comes first
        layers.insert(0, nn.Unflatten(1, (num_features, 1, 1)))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)
