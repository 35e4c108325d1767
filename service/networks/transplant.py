"""torchvision's weights under our names, for the base networks that torchvision has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

# Base network -> torchvision's name of it.
TORCHVISION = {"resnet18": "resnet18", "densenet121": "densenet121"}

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

RESNET_RULES: tuple[Rule, ...] = (
    (r"^conv1\.", "blocks.0.body.0."),
    (r"^bn1\.", "blocks.0.body.1."),
    (r"^layer1\.(\d)\.", lambda m: f"blocks.0.body.{4 + int(m[1])}."),
    (r"^layer([234])\.(\d)\.", lambda m: f"blocks.{int(m[1]) - 1}.body.{m[2]}."),
    (r"\.downsample\.", ".shortcut."),
    (r"^fc\.", "classifier."),
)
DENSENET_RULES: tuple[Rule, ...] = (
    (r"^features\.conv0\.", "blocks.0.body.0."),
    (r"^features\.norm0\.", "blocks.0.body.1."),
    (r"^features\.transition(\d)\.norm\.", lambda m: f"blocks.{m[1]}.body.0."),
    (r"^features\.transition(\d)\.conv\.", lambda m: f"blocks.{m[1]}.body.2."),
    (
        r"^features\.denseblock(\d)\.denselayer(\d+)\.",
        lambda m: f"blocks.{int(m[1]) - 1}.body.{3 + int(m[2])}.",
    ),
    (r"^features\.norm5\.", "tail.0."),
)
RULES = {"resnet18": RESNET_RULES, "densenet121": DENSENET_RULES}


def from_torchvision(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of torchvision's network as the state of ours.

    ResNet-18's weights are complete for the variant without the projection in conv2_x
    (``projection=False``); the paper's variant keeps that one layer as it was.
    """
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in RULES[name]:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    return renamed
