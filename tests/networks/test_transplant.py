"""torchvision's networks, with weights and norms that are all random, give the same logits under our names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models import get_model

from service.networks.registry import BACKBONES, build
from service.networks.transplant import TORCHVISION, from_torchvision

# Options under which ours is torchvision's network.
OPTIONS: dict[str, Mapping[str, Any]] = {"resnet18": {"projection": False}, "densenet121": {}}


@cache
def torchvision_network(name: str) -> nn.Module:
    """In evaluation mode and float64; no two norms alike, so that a swapped pair shows."""
    torch.manual_seed(0)
    network: nn.Module = get_model(TORCHVISION[name], weights=None, num_classes=5).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for scale in (module.weight, module.running_var):
                nn.init.uniform_(scale, 0.5, 1.5)
            for shift in (module.bias, module.running_mean):
                nn.init.normal_(shift, std=0.2)
    return network


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize("resolution", [64, 100])
def test_transplanted_network_answers_as_torchvisions(name: str, resolution: int) -> None:
    theirs, ours = torchvision_network(name), build(name, 5, OPTIONS[name]).double().eval()
    ours.load_state_dict(from_torchvision(name, theirs.state_dict()))
    x = torch.randn(2, 3, resolution, resolution, dtype=torch.float64)
    with torch.no_grad():
        logits = theirs(x)
        assert_close(ours(x)[0], logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # images differ, so the comparison means something


def test_the_papers_resnet_lacks_only_its_projection() -> None:
    state = from_torchvision("resnet18", torchvision_network("resnet18").state_dict())
    missing, unexpected = build("resnet18", 5).load_state_dict(state, strict=False)
    assert not unexpected
    assert missing
    assert all(name.startswith("blocks.0.body.4.shortcut.") for name in missing)


@pytest.mark.parametrize("name", TORCHVISION)
def test_weights_are_renamed_and_never_changed(name: str) -> None:
    state: dict[str, Tensor] = torchvision_network(name).state_dict()
    renamed = from_torchvision(name, state)
    assert len(renamed) == len(state)
    assert [id(tensor) for tensor in renamed.values()] == [id(tensor) for tensor in state.values()]


def test_every_transplant_is_into_a_base_network() -> None:
    assert TORCHVISION.keys() <= BACKBONES.keys()
