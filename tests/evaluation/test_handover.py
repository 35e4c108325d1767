"""How much of each sum comes from below is told right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from service.evaluation.handover import handover
from service.networks.cascade import pyramid
from service.networks.msnet import MSNet
from service.networks.registry import build

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def _network(fusion: str, prefix: str = "ms_") -> MSNet:
    torch.manual_seed(0)
    network = build(f"{prefix}mobilenet_v1_025", 4, {"fusion": fusion}).eval()
    assert isinstance(network, MSNet)
    return network


@pytest.mark.parametrize("prefix", ["ms_", "ms3_"])
@pytest.mark.parametrize(("fusion", "blocks"), [("before_relu", 5), ("after_relu", 4)])
def test_every_sum_of_maps_is_told(fusion: str, blocks: int, prefix: str) -> None:
    found = handover(_network(fusion, prefix), [IMAGES[:2], IMAGES[2:]])
    assert len(found) == blocks
    assert all(0 < each.share < 1 and -1 <= each.correlation <= 1 for each in found)


def test_a_low_network_that_gives_nothing_has_no_share() -> None:
    network = _network("before_relu")
    norms = [module for module in network.backbone(0).modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.zeros_(norm.weight)
    assert [each.share for each in handover(network, [IMAGES])] == [0.0] * 5


def test_a_network_that_gives_nothing_at_all_has_no_share_either() -> None:
    network = _network("before_relu")
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.zeros_(norm.weight)
    assert {(each.share, each.correlation) for each in handover(network, [IMAGES])} == {(0.0, 0.0)}


def test_a_high_network_that_takes_back_what_it_is_given_is_told_by_a_negative_correlation() -> None:
    network = _network("after_relu")
    taken_back = network.backbone(1).blocks[0]
    given = network.run(0, pyramid(IMAGES, network.scales)[0], ())[1][0]
    taken_back.register_forward_hook(lambda *_: -2 * nn.functional.interpolate(given, scale_factor=2.0))
    first = handover(network, [IMAGES])[0]
    assert first.correlation == pytest.approx(-1, abs=1e-4)
    assert first.share == pytest.approx(0.2, abs=1e-4)
