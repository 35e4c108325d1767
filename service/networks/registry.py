"""Every network by name. A new backbone is one file beside this one and one line in ``BACKBONES``; one of torchvision's
is a name in ``torchvision.NAMES``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from service.errors import InvalidOption
from service.networks.backbone import Backbone
from service.networks.densenet import densenet121
from service.networks.efficientnet_lite import efficientnet_lite0
from service.networks.mobilenet import mobilenet_v1
from service.networks.msnet import MSNet
from service.networks.resnet import resnet18
from service.networks.torchvision import NAMES, torchvision_backbone

MULTI_SCALE_PREFIX = "ms_"


def _mobilenet(alpha: float) -> Callable[[int], Backbone]:
    """The width belongs to the name, so no option may change it."""
    return lambda num_classes: mobilenet_v1(num_classes, alpha)


def _torchvision(name: str) -> Callable[[int], Backbone]:
    return lambda num_classes: torchvision_backbone(name, num_classes)


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet18": resnet18,
    "mobilenet_v1_100": _mobilenet(1.0),
    "mobilenet_v1_075": _mobilenet(0.75),
    "mobilenet_v1_050": _mobilenet(0.5),
    "mobilenet_v1_025": _mobilenet(0.25),
    "densenet121": densenet121,
    "efficientnet_lite0": efficientnet_lite0,
    **{name: _torchvision(name) for name in NAMES},
}

# The high resolution each network is quoted at, where it is not the usual one.
REFERENCE_RESOLUTIONS = dict.fromkeys(("densenet121", "efficientnet_lite0", *NAMES), 224)
DEFAULT_REFERENCE_RESOLUTION = 256


def names() -> list[str]:
    """Every network: first the multi-scale ones, then their single-scale base networks."""
    return [MULTI_SCALE_PREFIX + name for name in BACKBONES] + list(BACKBONES)


def is_multi_scale(name: str) -> bool:
    """Whether ``name`` is a multi-scale network rather than a base network."""
    return name.startswith(MULTI_SCALE_PREFIX)


def backbone_name(name: str) -> str:
    """``ms_resnet18`` -> ``resnet18``; a base network's own name stays."""
    return name.removeprefix(MULTI_SCALE_PREFIX)


def reference_resolution(name: str) -> int:
    """The high resolution at which the cost of network ``name`` is quoted, by the paper or by torchvision."""
    return REFERENCE_RESOLUTIONS.get(backbone_name(name), DEFAULT_REFERENCE_RESOLUTION)


def build(name: str, num_classes: int, options: Mapping[str, Any] | None = None) -> MSNet | Backbone:
    """A freshly initialised network.

    Args:
        name: one of ``names()``.
        num_classes: logits given, at least 2.
        options: ``fusion`` of a multi-scale network (see ``MSNet``); every other goes to the backbone
            (ResNet-18: ``projection``).

    Raises:
        InvalidOption: unknown name or option, or an option's value out of bounds.
    """
    if backbone_name(name) not in BACKBONES:
        raise InvalidOption("network", name, f"one of {', '.join(names())}")
    if num_classes < 2:
        raise InvalidOption("num_classes", num_classes, "at least 2")
    backbone_options = dict(options or {})
    fusion: Any = backbone_options.pop("fusion", "before_relu") if is_multi_scale(name) else None
    make = partial(BACKBONES[backbone_name(name)], num_classes, **backbone_options)
    try:
        return MSNet(make(), make(), fusion) if is_multi_scale(name) else make()
    except (TypeError, ValueError) as error:
        raise InvalidOption("options", dict(options or {}), f"options that {name} has: {error}") from error
