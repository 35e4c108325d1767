"""torchvision's networks as blocks: equal to torchvision's own, at its cost; they train, and convert to OpenVINO."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models import get_model, get_model_weights

from service.images.sizes import in_sizes
from service.images.transforms import Preprocessing
from service.inference.runtimes.base import normalise
from service.model_spec import Architecture, ModelSpec
from service.networks.backbone import Backbone
from service.networks.cascade import pyramid
from service.networks.cost import cost
from service.networks.efficientnet_lite import efficientnet_lite0
from service.networks.msnet import MSNet
from service.networks.registry import BACKBONES
from service.networks.torchvision import NAMES
from service.networks.transplant import from_torchvision
from service.stages import StageSpec

CLASSES = 5
SIDE = 64
PREPROCESSING = Preprocessing.at(SIDE)
every_network = pytest.mark.parametrize("name", NAMES)
every_new_network = pytest.mark.parametrize("name", [*NAMES, "efficientnet_lite0"])

# One of each kind: the others are the same layers more often, and converting takes seconds.
KINDS = (
    "resnet34",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "regnet_y_400mf",
    "efficientnet_lite0",
)


def randomise(network: nn.Module) -> None:
    """Norms and scales far from their initial state, statistics that fit what they see: nothing agrees by chance."""
    for name, parameter in network.named_parameters():
        if name.endswith("layer_scale") or (parameter.dim() == 1 and name.endswith("weight")):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.2)
    for module in network.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all that it sees
            module.train()
    with torch.no_grad():
        network(images(8))
    network.eval()


@cache
def theirs(name: str) -> nn.Module:
    """torchvision's network in evaluation mode; shared between tests, none of which changes it."""
    torch.manual_seed(0)
    network: nn.Module = get_model(name, weights=None, num_classes=CLASSES).eval()
    randomise(network)
    return network


@cache
def ours(name: str) -> Backbone:
    """The same weights under our names; shared between tests, none of which changes it."""
    if name == "efficientnet_lite0":
        network = efficientnet_lite0(CLASSES)
        randomise(network)
        return network
    with torch.device("meta"):
        network = BACKBONES[name](CLASSES)
    network.load_state_dict(from_torchvision(name, theirs(name).state_dict()), assign=True)
    return network.eval()


def pixels(count: int, side: int = SIDE) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def spec_of(*sides: int) -> ModelSpec:
    """Of a network whose stages have inputs of these sides."""
    stages = tuple(StageSpec(str(side), side, float(side)) for side in sides)
    return ModelSpec("n", 1, Architecture("any", CLASSES), (), (), PREPROCESSING, stages, "")


def images(count: int, side: int = SIDE) -> Tensor:
    return normalise(pixels(count, side), PREPROCESSING)


def equal_to(expected: Tensor, got: Tensor, tolerance: float = 1e-4) -> None:
    """Relative to the largest logit."""
    assert_close(got, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@every_network
@pytest.mark.parametrize("side", [64, 80])
def test_network_answers_as_torchvisions_with_the_same_weights(name: str, side: int) -> None:
    x = images(2, side)
    with torch.no_grad():
        logits = theirs(name)(x)
        equal_to(logits, ours(name)(x)[0])
    assert (logits[0] - logits[1]).abs().max() > 0.01  # images differ, so the comparison means something


@every_network
@pytest.mark.parametrize("fusion", ["before_relu", "after_relu"])
def test_last_stage_without_features_is_torchvisions_network(name: str, fusion: str) -> None:
    network, x = MSNet([ours(name), ours(name)], fusion), images(2)  # type: ignore[arg-type]
    with torch.no_grad():
        _, carried = network.run(0, pyramid(x, network.scales)[0], ())
        nothing = tuple(torch.zeros_like(feature) for feature in carried)
        expected = theirs(name)(x)
        equal_to(expected, network.run(1, x, nothing)[0])
        changed = (network.run(1, x, carried)[0] - expected).abs().max()
    assert changed > 1e-3 * expected.abs().max()  # else zeroing proves nothing


@every_network
def test_cost_is_the_one_that_torchvision_publishes(name: str) -> None:
    weights = get_model_weights(name)["DEFAULT"]
    (resolution,) = weights.transforms().crop_size
    published = 1000 * weights.meta["_ops"]
    assert cost(name, 1000, resolution)[-1] == pytest.approx(published, rel=0.01, abs=0.5)


@every_network
def test_number_of_parameters_is_the_one_that_torchvision_publishes(name: str) -> None:
    with torch.device("meta"):
        network = BACKBONES[name](1000)
    published = get_model_weights(name)["DEFAULT"].meta["num_params"]
    assert sum(parameter.numel() for parameter in network.parameters()) == published


@every_new_network
def test_both_scales_train_a_step(name: str) -> None:
    torch.manual_seed(0)
    network = MSNet([copy.deepcopy(ours(name)), copy.deepcopy(ours(name))]).train()
    before = copy.deepcopy(network.state_dict())
    losses = [nn.functional.cross_entropy(logits, torch.arange(2)) for logits in network(images(2))]
    torch.autograd.backward(losses)
    torch.optim.SGD(network.parameters(), lr=1e-3).step()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.isfinite().all(), parameter_name
    moved = [key for key, tensor in network.named_parameters() if not torch.equal(tensor, before[key])]
    assert len(moved) > 0.9 * len(list(network.parameters()))  # stochastic depth leaves some layers out


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("name", KINDS)
def test_openvino_answers_as_eager_does(name: str) -> None:
    from service.inference.runtimes.openvino import OpenVINORuntime, convert

    with torch.no_grad():
        (expected,) = ours(name)(images(2))
    runtime = OpenVINORuntime(convert(copy.deepcopy(ours(name)), spec_of(SIDE)), "float32", 1)
    equal_to(expected, runtime.run(0, pixels(2), ())[0], 1e-3)


@pytest.mark.usefixtures("openvino")
def test_openvino_answers_as_eager_does_at_two_scales() -> None:
    from service.inference.runtimes.openvino import OpenVINORuntime, convert

    network = MSNet([ours("mobilenet_v3_small"), ours("mobilenet_v3_small")]).eval()
    sizes = in_sizes(pixels(2), (SIDE // 2, SIDE))
    with torch.no_grad():
        low, high = network.run_all([normalise(each, PREPROCESSING) for each in sizes])
    runtime = OpenVINORuntime(convert(copy.deepcopy(network), spec_of(SIDE // 2, SIDE)), "float32", 1)
    logits, carried = runtime.run(0, sizes[0], ())
    equal_to(low, logits, 1e-3)
    equal_to(high, runtime.run(1, sizes[1], carried)[0], 1e-3)
