"""The base networks: where they are cut, what they give, and the convolution that trains faster in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from service.networks.backbone import Backbone, Block, initialise
from service.networks.cascade import pyramid
from service.networks.densenet import densenet121
from service.networks.mobilenet import DepthwiseConv2d, mobilenet_v1
from service.networks.registry import BACKBONES
from service.networks.resnet import resnet18

# Network -> (channels, side at 64 pixels) of each block's map.
SIDES_OF_4, SIDES_OF_5 = (16, 8, 4, 2), (32, 16, 8, 4, 2)
CHANNELS = {
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "resnet101": (256, 512, 1024, 2048),
    "mobilenet_v2": (16, 24, 32, 96, 320),
    "mobilenet_v3_large": (16, 24, 40, 112, 160),
    "mobilenet_v3_small": (16, 16, 24, 48, 96),
    "efficientnet_lite0": (16, 24, 40, 112, 320),
    "efficientnet_b0": (16, 24, 40, 112, 320),
    "efficientnet_b1": (16, 24, 40, 112, 320),
    "efficientnet_b2": (16, 24, 48, 120, 352),
    "efficientnet_b3": (24, 32, 48, 136, 384),
    "efficientnet_b4": (24, 32, 56, 160, 448),
    "efficientnet_v2_s": (24, 48, 64, 160, 256),
    "convnext_tiny": (96, 192, 384, 768),
    "regnet_y_400mf": (32, 48, 104, 208, 440),
    "regnet_y_800mf": (32, 64, 144, 320, 784),
    "regnet_y_1_6gf": (32, 48, 120, 336, 888),
}
MAPS = {
    **{
        name: list(zip(channels, SIDES_OF_4 if len(channels) == 4 else SIDES_OF_5, strict=True))
        for name, channels in CHANNELS.items()
    },
    "resnet18": [(64, 16), (128, 8), (256, 4), (512, 2)],
    "mobilenet_v1_100": [(64, 32), (128, 16), (256, 8), (512, 4), (1024, 2)],
    "mobilenet_v1_075": [(48, 32), (96, 16), (192, 8), (384, 4), (768, 2)],
    "mobilenet_v1_050": [(32, 32), (64, 16), (128, 8), (256, 4), (512, 2)],
    "mobilenet_v1_025": [(16, 32), (32, 16), (64, 8), (128, 4), (256, 2)],
    "densenet121": [(256, 16), (512, 8), (1024, 4), (1024, 2)],
}
TINY = 0.125  # width of a MobileNet that runs in a millisecond


def block_maps(network: Backbone, x: Tensor) -> list[Tensor]:
    maps = []
    for block in network.blocks:
        x = block(x)
        maps.append(x)
    return maps


def images(count: int, resolution: int) -> Tensor:
    return torch.randn(count, 3, resolution, resolution, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BACKBONES)
def test_blocks_are_cut_where_the_map_halves(name: str) -> None:
    with torch.device("meta"):
        maps = block_maps(BACKBONES[name](10), torch.empty(1, 3, 64, 64))
    assert [tuple(x.shape[1:]) for x in maps] == [(channels, side, side) for channels, side in MAPS[name]]


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(("num_classes", "resolution"), [(2, 66), (7, 96), (1000, 200)])
def test_any_number_of_classes_and_any_size(name: str, num_classes: int, resolution: int) -> None:
    with torch.device("meta"), torch.no_grad():
        (logits,) = BACKBONES[name](num_classes).eval()(torch.empty(2, 3, resolution, resolution))
    assert logits.shape == (2, num_classes)


@pytest.mark.parametrize("name", BACKBONES)
def test_stride_is_the_input_pixels_per_pixel_of_the_last_map(name: str) -> None:
    with torch.device("meta"):
        network = BACKBONES[name](10)
        last = block_maps(network, torch.empty(1, 3, 128, 128))[-1]
    assert last.shape[-1] * network.stride == 128


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v1_025", "resnet34", "resnet50", "regnet_y_400mf"])
def test_every_block_ends_with_a_relu_that_stands_apart(name: str) -> None:
    torch.manual_seed(0)
    x = images(2, 64)
    for block in BACKBONES[name](3).blocks:
        assert isinstance(block, Block)
        summed = block.body(x)
        assert summed.min() < 0
        x = block(x)
        assert_close(x, summed.relu())


def test_densenet_blocks_end_with_their_concatenation_and_its_tail_with_norm_and_relu() -> None:
    network = densenet121(3)
    assert all(isinstance(block.get_submodule("activation"), nn.Identity) for block in network.blocks)
    assert isinstance(network.tail, nn.Sequential)
    assert [type(module) for module in network.tail] == [nn.BatchNorm2d, nn.ReLU]


def test_resnet_projection_adds_one_convolution_and_its_norm() -> None:
    paper, plain = resnet18(3).state_dict(), resnet18(3, projection=False).state_dict()
    added = {name for name in paper if name not in plain}
    assert all(name.startswith("blocks.0.body.4.shortcut.") for name in added)
    assert paper["blocks.0.body.4.shortcut.0.weight"].shape == (64, 64, 1, 1)
    assert plain.keys() < paper.keys()


def test_pool_and_classify_are_the_rest_of_forward() -> None:
    torch.manual_seed(0)
    network = mobilenet_v1(3, TINY).train()  # fresh norms would let nothing through in evaluation
    last = block_maps(network, images(2, 64))[-1]
    pooled = network.pool(last)
    assert_close(pooled, last.flatten(2).mean(2))
    assert_close(network.classify(pooled), network(images(2, 64))[0])


def test_pyramid_averages_two_by_two_pixels() -> None:
    x = torch.tensor([[[[1.0, 3.0, 10.0, 10.0], [5.0, 7.0, 10.0, 30.0]]]])
    assert_close(pyramid(x, [2])[0], torch.tensor([[[[4.0, 15.0]]]]))


def test_pyramid_is_bilinear_without_antialiasing() -> None:
    x = images(2, 64)
    assert_close(pyramid(x, [2])[0], nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=False))


def test_initial_weights_keep_the_variance_of_gradients_and_small_logits() -> None:
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(64, 128, 3), nn.Linear(512, 100)
    initialise(nn.Sequential(convolution, linear))
    assert convolution.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert linear.bias.abs().max() == 0


def bfloat16_gradients(convolution: nn.Conv2d, x: Tensor, out_gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the input and of the weight, as float32."""
    x = x.detach().requires_grad_()
    out = convolution(x)
    of_input, of_weight = torch.autograd.grad(out, (x, convolution.weight), out_gradient)
    return out.float(), of_input.float(), of_weight.float()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 7, 8])
def test_depthwise_convolution_trains_in_bfloat16_as_a_plain_one(stride: int, side: int) -> None:
    torch.manual_seed(0)
    ours = DepthwiseConv2d(6, stride).bfloat16()
    plain = nn.Conv2d(6, 6, 3, stride, padding=1, groups=6, bias=False)
    plain.load_state_dict(ours.state_dict())  # float32 holds every bfloat16
    x, out_gradient = (
        torch.randn(4, 6, side, side).bfloat16(),
        torch.randn(4, 6, -(-side // stride), -(-side // stride)),
    )
    got = bfloat16_gradients(ours, x, out_gradient.bfloat16())
    expected = bfloat16_gradients(plain, x.float(), out_gradient.bfloat16().float())
    assert_close(got, expected, rtol=0.02, atol=0.02)


def test_depthwise_convolution_gives_under_autocast_what_it_gives_without_gradients() -> None:
    torch.manual_seed(0)
    convolution, x = DepthwiseConv2d(6, 2), torch.randn(2, 6, 9, 9).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = convolution(x)
        with torch.no_grad():
            served = convolution(x)
    assert trained.dtype == served.dtype == torch.bfloat16
    assert_close(trained, served)


def test_depthwise_convolution_adds_no_name_to_the_weights() -> None:
    assert list(DepthwiseConv2d(6, 2).state_dict()) == ["weight"]
