"""The multi-scale network against its formula, its base networks, and what escalation asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from service.networks.backbone import Backbone, Block
from service.networks.cascade import Carried, pyramid
from service.networks.mobilenet import mobilenet_v1
from service.networks.msnet import FUSIONS, Fusion, MSNet, upsample
from service.networks.registry import BACKBONES, build

FAMILIES = ["resnet18", "mobilenet_v1_025", "densenet121"]
BATCH = 6
every_family = pytest.mark.parametrize("name", FAMILIES)
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)
orders = st.lists(st.integers(0, BATCH - 1), min_size=1, max_size=BATCH, unique=True)


@pytest.fixture(autouse=True)
def _no_gradients_unless_asked_for() -> Iterator[None]:
    with torch.no_grad():
        yield


def randomise(network: nn.Module) -> None:
    """Norms far from their initial state and weights that let the image through, so that nothing agrees by chance."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for scale in (module.weight, module.running_var):
                nn.init.uniform_(scale, 0.5, 1.5)
            for shift in (module.bias, module.running_mean):
                nn.init.normal_(shift, std=0.2)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


@cache
def low_and_high(name: str) -> tuple[Backbone, Backbone]:
    """Float64 and in evaluation mode; shared between tests, none of which changes them."""
    torch.manual_seed(0)
    make = partial(mobilenet_v1, alpha=0.125) if name == "tiny" else BACKBONES[name]
    low, high = make(5), make(5)
    for network in (low, high):
        randomise(network)
    return low.double().eval(), high.double().eval()


def network_of(name: str, fusion: Fusion) -> MSNet:
    return MSNet(low_and_high(name), fusion).eval()


def first(network: MSNet, x: Tensor) -> tuple[Tensor, Carried]:
    """What the first of two stages says of images (B, 3, R, R), and hands on."""
    return network.run(0, pyramid(x, network.scales)[0], ())


def second(network: MSNet, x: Tensor, carried: Carried) -> Tensor:
    return network.run(1, x, carried)[0]


def tiny(fusion: Fusion) -> MSNet:
    """A MobileNet of an eighth of the width."""
    return network_of("tiny", fusion)


def images(count: int, resolution: int) -> Tensor:
    generator = torch.Generator().manual_seed(resolution)
    return torch.randn(count, 3, resolution, resolution, dtype=torch.float64, generator=generator)


def base_network(name: str, weights: Backbone) -> Backbone:
    network = BACKBONES[name](5).double().eval()
    network.load_state_dict(weights.state_dict())
    return network


def two_by_two_means(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def materialised(low: Tensor, like: Tensor) -> Tensor:
    """u(low) on a zeroed map of ``like``'s size."""
    doubled = low.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    height, width = min(doubled.shape[2], like.shape[2]), min(doubled.shape[3], like.shape[3])
    out = torch.zeros_like(like)
    out[..., :height, :width] = doubled[..., :height, :width]
    return out


def low_maps(network: MSNet, x: Tensor) -> list[Tensor]:
    maps = []
    x = two_by_two_means(x)
    for block in network.backbone(0).blocks:
        x = block(x)
        maps.append(x.clone())
    return maps


def gates_of(network: MSNet, maps: list[Tensor]) -> list[Tensor]:
    """Of the high network's blocks: 1 where there are none."""
    gates: list[Tensor] = [*network.gates.parameters()]
    return gates or [torch.ones(()) for _ in maps]


def high_by_formula(network: MSNet, x: Tensor) -> Tensor:
    """x_H[i+1] = H_i(x_H[i]) + gate * u(x_L[i+1]), every upsampled map materialised."""
    maps = low_maps(network, x)
    for block, handed, gate in zip(network.backbone(1).blocks, maps, gates_of(network, maps), strict=True):
        assert isinstance(block, Block)
        low = handed * gate
        if network.fusion == "after_relu":
            x = block(x)
            x = x + materialised(low, x)
        else:
            x = block.body(x)
            x = block.activation(x + materialised(low, x))
    return network.backbone(1).classify(network.backbone(1).pool(x))


@every_family
@every_fusion
@pytest.mark.parametrize("resolution", [64, 96])
def test_high_network_computes_the_formula(name: str, fusion: Fusion, resolution: int) -> None:
    network, x = network_of(name, fusion), images(2, resolution)
    assert_close(network(x)[1], high_by_formula(network, x))


@every_family
@every_fusion
def test_gates_scale_what_comes_from_below_channel_by_channel(name: str, fusion: Fusion) -> None:
    network, x = MSNet(low_and_high(name), fusion, gated=True).double(), images(2, 64)
    for gate in network.gates.parameters():
        nn.init.normal_(gate)
    assert_close(network(x)[1], high_by_formula(network, x))


@every_family
@every_fusion
def test_network_whose_gates_are_shut_starts_as_its_base_networks(name: str, fusion: Fusion) -> None:
    network, x = MSNet(low_and_high(name), fusion, gated=True).double(), images(2, 64)
    low, high = low_and_high(name)
    for ours, (alone,) in zip(network(x), (low(pyramid(x, network.scales)[0]), high(x)), strict=True):
        assert torch.equal(ours, alone)


def test_gates_that_are_shut_learn_to_open() -> None:
    network, x = MSNet(low_and_high("tiny"), gated=True).double(), images(2, 64)
    with torch.enable_grad():
        gradients = torch.autograd.grad(network(x)[1].sum(), list(network.gates.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@settings(deadline=None, max_examples=25)
@given(resolution=st.integers(16, 80).map(lambda half: 2 * half), fusion=st.sampled_from(FUSIONS))
def test_formula_holds_at_every_even_resolution(resolution: int, fusion: Fusion) -> None:
    network, x = tiny(fusion), images(1, resolution)
    assert_close(network(x)[1], high_by_formula(network, x))


@every_family
@every_fusion
def test_high_network_without_low_features_is_the_base_network(name: str, fusion: Fusion) -> None:
    network, x = network_of(name, fusion), images(2, 64)
    _, carried = first(network, x)
    nothing = tuple(torch.zeros_like(feature) for feature in carried)
    (expected,) = base_network(name, network.backbone(1))(x)
    assert_close(second(network, x, nothing), expected)
    assert (second(network, x, carried) - expected).abs().max() > 0.01  # else zeroing proves nothing


@every_family
@every_fusion
def test_low_network_is_the_base_network_on_the_half_size_image(name: str, fusion: Fusion) -> None:
    network, x = network_of(name, fusion), images(2, 64)
    (expected,) = base_network(name, network.backbone(0))(two_by_two_means(x))
    assert_close(first(network, x)[0], expected)


@every_family
@every_fusion
def test_different_images_get_different_answers(name: str, fusion: Fusion) -> None:
    for logits in network_of(name, fusion)(images(2, 64)) + tiny(fusion)(images(2, 64)):
        assert (logits[0] - logits[1]).abs().max() > 0.01  # else the comparisons of this file prove little


@every_fusion
def test_forward_is_the_low_pass_then_the_high_pass(fusion: Fusion) -> None:
    network, x = tiny(fusion), images(2, 64)
    logits, carried = first(network, x)
    assert_close(network(x), (logits, second(network, x, carried)))


@every_family
@every_fusion
def test_an_images_answers_do_not_depend_on_its_batch(name: str, fusion: Fusion) -> None:
    network, x = network_of(name, fusion), images(3, 64)
    alone = [network(image[None]) for image in x]
    low, high = network(x)
    assert_close(low, torch.cat([answer[0] for answer in alone]))
    assert_close(high, torch.cat([answer[1] for answer in alone]))


@every_family
@every_fusion
def test_high_pass_leaves_images_and_low_features_as_they_were(name: str, fusion: Fusion) -> None:
    network, x = network_of(name, fusion), images(2, 64)
    (_, carried), x_before = first(network, x), x.clone()
    features_before = [feature.clone() for feature in carried]
    second(network, x, carried)
    assert_close(x, x_before, rtol=0, atol=0)
    assert_close(list(carried), features_before, rtol=0, atol=0)


@cache
def batch_of_low_states(fusion: Fusion) -> tuple[Tensor, Carried, Tensor]:
    """Images, what the first stage hands on, and the second stage's logits, all in one batch."""
    x = images(BATCH, 64)
    _, carried = first(tiny(fusion), x)
    return x, carried, second(tiny(fusion), x, carried)


@settings(deadline=None, max_examples=30)
@given(order=orders, fusion=st.sampled_from(FUSIONS))
def test_escalating_any_images_in_any_order_gives_each_its_own_answer(order: list[int], fusion: Fusion) -> None:
    x, carried, high = batch_of_low_states(fusion)
    index = torch.tensor(order)
    assert_close(second(tiny(fusion), x[index], tuple(feature[index] for feature in carried)), high[index])


def three_scales(fusion: Fusion) -> MSNet:
    torch.manual_seed(1)
    copies = [mobilenet_v1(5, 0.125) for _ in range(3)]
    for each in copies:
        randomise(each)
    return MSNet(copies, fusion).double().eval()


@every_fusion
@pytest.mark.parametrize("resolution", [64, 128, 224])  # last maps at 224: 2, 4 and 7, of which 4 doubled is cropped
def test_three_scales_compute_the_formula(fusion: Fusion, resolution: int) -> None:
    """Each stage adds what the one below made, upsampled, after every block."""
    network, x = three_scales(fusion), images(2, resolution)
    below: list[Tensor] = []
    for stage, (pixels, logits) in enumerate(zip(pyramid(x, (4, 2, 1)), network(x), strict=True)):
        backbone, maps = network.backbone(stage), []
        for index, block in enumerate(backbone.blocks):
            assert isinstance(block, Block)
            if not below:
                pixels = block(pixels)
            elif fusion == "after_relu":
                pixels = block(pixels)
                pixels = pixels + materialised(below[index], pixels)
            else:
                own = block.body(pixels)
                pixels = block.activation(own + materialised(below[index], own))
            maps.append(pixels)
        assert_close(logits, backbone.classify(backbone.pool(pixels)))
        below = maps


def test_only_the_stage_before_the_last_hands_on_a_mean() -> None:
    network, x = three_scales("after_relu"), images(1, 128)
    smallest, middle, _ = pyramid(x, network.scales)
    _, carried = network.run(0, smallest, ())
    assert carried[-1].dim() == 4  # the next stage hands its own last map on, so it needs this one whole
    assert network.run(1, middle, carried)[1][-1].dim() == 2


def test_upsample_doubles_by_nearest_neighbour() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert upsample(x, torch.Size((4, 4)))[0, 0].tolist() == expected


def test_upsample_pads_with_zeros_at_the_bottom_and_crops_at_the_right() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert upsample(x, torch.Size((5, 3)))[0, 0].tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 4], [3, 3, 4], [0, 0, 0]]
    assert upsample(x, torch.Size((3, 5)))[0, 0].tolist() == [[1, 1, 2, 2, 0], [1, 1, 2, 2, 0], [3, 3, 4, 4, 0]]


def last_maps(name: str, resolution: int) -> tuple[Tensor, Tensor]:
    """The last low map and the last high map, on the meta device: shapes alone."""
    with torch.device("meta"):
        network = build("ms_" + name, 5, {"fusion": "before_relu"}).eval()
        assert isinstance(network, MSNet)
        x = torch.empty(1, 3, resolution, resolution)
        low = first(network, x)[1][-1]
        for block in network.backbone(1).blocks:
            x = block(x)
    return low, x


@pytest.mark.parametrize(
    ("name", "resolution", "low_side", "high_side"),
    [
        ("densenet121", 224, 3, 7),  # 6 against 7: padded, as the paper says
        ("densenet121", 256, 4, 8),
        ("resnet18", 200, 4, 7),  # 8 against 7: cropped
        ("resnet18", 256, 4, 8),
        ("mobilenet_v1_025", 192, 3, 6),
        ("mobilenet_v1_025", 224, 4, 7),
    ],
)
def test_last_maps_do_not_always_double(name: str, resolution: int, low_side: int, high_side: int) -> None:
    low, high = last_maps(name, resolution)
    assert (low.shape[-2:], high.shape[-2:]) == ((low_side, low_side), (high_side, high_side))


@pytest.mark.parametrize(("name", "resolution"), [("densenet121", 224), ("resnet18", 200)])
@every_fusion
def test_unequal_last_maps_are_padded_or_cropped_and_summed(name: str, resolution: int, fusion: Fusion) -> None:
    network, x = network_of(name, fusion), images(1, resolution)
    assert_close(network(x)[1], high_by_formula(network, x))


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 512), ("mobilenet_v1_025", 256)])
@pytest.mark.parametrize("resolution", [64, 120, 128])  # last maps at 120: 2 and 4, rounded up
def test_last_low_feature_is_its_mean_where_nothing_follows_the_sum(name: str, channels: int, resolution: int) -> None:
    network, x = network_of(name, "after_relu"), images(2, resolution)
    last = first(network, x)[1][-1]
    assert last.shape == (2, channels)
    assert_close(last, low_maps(network, x)[-1].mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "fusion", "resolution"),
    [
        ("resnet18", "before_relu", 64),  # a ReLU follows the sum
        ("mobilenet_v1_025", "before_relu", 64),
        ("densenet121", "after_relu", 64),  # a norm and a ReLU follow it
        ("resnet18", "after_relu", 96),  # 4 cropped to 3
        ("mobilenet_v1_025", "after_relu", 200),  # 8 cropped to 7
    ],
)
def test_last_low_feature_is_a_map_elsewhere(name: str, fusion: Fusion, resolution: int) -> None:
    network, x = network_of(name, fusion), images(1, resolution)
    assert_close(first(network, x)[1][-1], low_maps(network, x)[-1])


@every_family
def test_fusions_differ_only_where_a_block_ends_with_a_relu(name: str) -> None:
    before, x = network_of(name, "before_relu"), images(1, 64)
    after = MSNet([before.backbone(0), before.backbone(1)], "after_relu")
    difference = (before(x)[1] - after(x)[1]).abs().max()
    assert difference == 0 if name == "densenet121" else difference > 0.01


def gradients(loss: Tensor, network: nn.Module) -> dict[str, Tensor | None]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True), strict=True))


@every_family
@every_fusion
def test_high_loss_trains_every_low_block_and_no_low_classifier(name: str, fusion: Fusion) -> None:
    network = network_of(name, fusion)
    with torch.enable_grad():
        loss = nn.functional.cross_entropy(network(images(2, 64))[1], torch.tensor([0, 3]))
    for parameter, gradient in gradients(loss, network.backbone(0)).items():
        if parameter.startswith("blocks."):
            assert gradient is not None, parameter
            assert gradient.abs().max() > 0, parameter
        else:
            assert gradient is None or gradient.abs().max() == 0, parameter


@every_family
@every_fusion
def test_low_loss_never_reaches_the_high_network(name: str, fusion: Fusion) -> None:
    network = network_of(name, fusion)
    with torch.enable_grad():
        loss = nn.functional.cross_entropy(network(images(2, 64))[0], torch.tensor([0, 3]))
    assert all(gradient is None for gradient in gradients(loss, network.backbone(1)).values())
    assert all(gradient is not None for gradient in gradients(loss, network.backbone(0)).values())


def test_low_answer_does_not_depend_on_the_high_network() -> None:
    network, x = tiny("before_relu"), images(2, 64)
    other = MSNet([network.backbone(0), mobilenet_v1(5, 0.125).double().eval()])
    assert_close(other(x)[0], network(x)[0], rtol=0, atol=0)
    assert (other(x)[1] - network(x)[1]).abs().max() > 0.01


def test_sum_is_taken_before_the_relu_unless_asked_otherwise() -> None:
    assert MSNet([mobilenet_v1(5, 0.125), mobilenet_v1(5, 0.125)]).fusion == "before_relu"


def test_unknown_fusion_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="before_relu, after_relu"):
        MSNet([mobilenet_v1(5, 0.125), mobilenet_v1(5, 0.125)], "sideways")  # type: ignore[arg-type]
