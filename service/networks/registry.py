"""Every network by name.

To add a backbone, write a file in this folder and add a line to ``BACKBONES``. For a torchvision network, add its name
to ``torchvision.NAMES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

from service.errors import InvalidOption
from service.networks.backbone import Backbone
from service.networks.cascade import Cascade
from service.networks.composed import Composed
from service.networks.densenet import densenet121
from service.networks.efficientnet_lite import efficientnet_lite0
from service.networks.mobilenet import mobilenet_v1
from service.networks.msnet import STAGE_NAMES, MSNet
from service.networks.resnet import resnet18
from service.networks.torchvision import NAMES, torchvision_backbone

# Prefix of a multi-scale network's name -> how many scales it has.
SCALES = {"ms_": 2, "ms3_": 3}

COMPOSED = "composed"

# Options of a multi-scale network as a whole; every other is its base network's.
OF_SCALES = ("fusion", "gated")


def _mobilenet(alpha: float) -> Callable[[int], Backbone]:
    """The name states the width, so no option may change it."""
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
    """Every network that can be trained: first the multi-scale ones, then their single-scale base networks."""
    return [prefix + name for prefix in (*SCALES, "") for name in BACKBONES]


def prefix_of(name: str) -> str:
    """``ms_`` of ``ms_resnet18``; empty for a base network."""
    return next((prefix for prefix in SCALES if name.startswith(prefix)), "")


def depth(name: str) -> int:
    """The number of stages of network ``name``; a base network has one."""
    return SCALES.get(prefix_of(name), 1)


def backbone_name(name: str) -> str:
    """``ms_resnet18`` -> ``resnet18``; the name of a base network is returned unchanged."""
    return name.removeprefix(prefix_of(name))


def stage_names(name: str) -> tuple[str, ...]:
    """The names of the stages of network ``name``, cheapest first."""
    return STAGE_NAMES[depth(name)]


def resolutions(name: str, resolution: int) -> tuple[int, ...]:
    """The input side of each stage of network ``name``, whose last stage has ``resolution``.

    Raises:
        InvalidOption: ``resolution`` is not divisible by the stages' scales.
    """
    largest = 2 ** (depth(name) - 1)
    if resolution % largest:
        raise InvalidOption("resolution", resolution, f"divisible by {largest}: {name} has {depth(name)} scales")
    return tuple(resolution // 2**power for power in reversed(range(depth(name))))


def reference_resolution(name: str) -> int:
    """The high resolution at which the paper or torchvision states the cost of network ``name``."""
    return REFERENCE_RESOLUTIONS.get(backbone_name(name), DEFAULT_REFERENCE_RESOLUTION)


def build(name: str, num_classes: int, options: Mapping[str, Any] | None = None) -> Cascade:
    """A freshly initialised network.

    Args:
        name: one of ``names()``, or ``composed``.
        num_classes: number of logits, at least 2.
        options: ``fusion`` and ``gated`` for a multi-scale network (see ``MSNet``); all others are options of the
            backbone (ResNet-18: ``projection``). For a composed network, ``members`` (network and options of each) and
            ``order`` (see ``Composed``).

    Raises:
        InvalidOption: the name or an option is unknown, or an option's value is out of bounds.
    """
    if num_classes < 2:
        raise InvalidOption("num_classes", num_classes, "at least 2")
    if name == COMPOSED:
        return _composed(num_classes, options or {})
    if backbone_name(name) not in BACKBONES:
        raise InvalidOption("network", name, f"one of {', '.join(names())}")
    backbone_options = dict(options or {})
    of_scales: dict[str, Any] = {}
    if depth(name) > 1:
        of_scales = {key: backbone_options.pop(key) for key in OF_SCALES if key in backbone_options}
    known = [*(OF_SCALES if depth(name) > 1 else ()), *list(signature(BACKBONES[backbone_name(name)]).parameters)[1:]]
    unknown = set(options or {}) - set(known)
    if unknown:
        raise InvalidOption("option", min(unknown), f"among the options that {name} has: {', '.join(known) or 'none'}")
    make = partial(BACKBONES[backbone_name(name)], num_classes, **backbone_options)
    try:
        return MSNet([make() for _ in range(depth(name))], **of_scales) if depth(name) > 1 else make()
    except (TypeError, ValueError) as error:
        raise InvalidOption("options", dict(options or {}), f"options that {name} has: {error}") from error


def _composed(num_classes: int, options: Mapping[str, Any]) -> Composed:
    try:
        members = [build(each["network"], num_classes, each["options"]) for each in options["members"]]
        order = [(int(member), int(stage)) for member, stage in options["order"]]
        for member, stage in order:
            if not (0 <= member < len(members) and 0 <= stage < members[member].depth):
                raise ValueError(f"there is no stage {stage} of member {member}")
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidOption("options", dict(options), f"members and their order: {error!r}") from error
    return Composed(members, order)
