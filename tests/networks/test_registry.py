"""Networks by name: all of them build and run, and whatever is wrong with a name or option is named."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from service.errors import InvalidOption
from service.networks.backbone import Backbone
from service.networks.msnet import FUSIONS, MSNet
from service.networks.registry import (
    SCALES,
    backbone_name,
    build,
    depth,
    names,
    reference_resolution,
    resolutions,
    stage_names,
)

IMPORTS = """
import sys
import torch, torch.utils.flop_counter
before = set(sys.modules)
import importlib, pkgutil
import service.networks
for module in pkgutil.iter_modules(service.networks.__path__, "service.networks."):
    importlib.import_module(module.name)
print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize("name", names())
def test_every_network_builds_and_runs(name: str) -> None:
    with torch.device("meta"), torch.no_grad():  # shapes alone: the values are compared elsewhere
        out = build(name, 3).eval()(torch.empty(1, 3, 128, 128))
    assert [tuple(logits.shape) for logits in out] == [(1, 3)] * depth(name)


@pytest.mark.parametrize("name", ["ms_resnet18", "mobilenet_v1_025", "densenet121", "ms3_mobilenet_v1_025"])
def test_fresh_network_gives_finite_logits(name: str) -> None:
    with torch.no_grad():
        out = build(name, 3).eval()(torch.randn(1, 3, 128, 128))
    assert all(logits.isfinite().all() for logits in out)


def test_every_base_network_has_a_multi_scale_one() -> None:
    base = [name for name in names() if depth(name) == 1]
    assert len(set(names())) == len(names()) == (1 + len(SCALES)) * len(base)
    for scales in SCALES.values():
        assert [backbone_name(name) for name in names() if depth(name) == scales] == base


def test_stages_are_named_and_sized_from_the_smallest_up() -> None:
    assert stage_names("ms_resnet18") == ("low", "high")
    assert stage_names("ms3_resnet18") == ("low", "middle", "high")
    assert stage_names("resnet18") == ("single",)
    assert resolutions("ms3_resnet18", 192) == (48, 96, 192)
    with pytest.raises(InvalidOption, match="divisible by 4"):
        resolutions("ms3_resnet18", 90)


@pytest.mark.parametrize("name", names())
def test_prefix_tells_the_kind_of_network(name: str) -> None:
    with torch.device("meta"):
        assert isinstance(build(name, 3), MSNet if name.startswith("ms") else Backbone)


def test_low_and_high_network_have_the_same_shapes_and_separate_weights() -> None:
    network = build("ms_mobilenet_v1_025", 3)
    assert isinstance(network, MSNet)
    low, high = network.backbone(0).state_dict(), network.backbone(1).state_dict()
    assert {name: tensor.shape for name, tensor in low.items()} == {name: t.shape for name, t in high.items()}
    assert not {tensor.data_ptr() for tensor in low.values()} & {tensor.data_ptr() for tensor in high.values()}


@pytest.mark.parametrize(
    ("name", "resolution"),
    [("resnet18", 256), ("mobilenet_v1_050", 256), ("densenet121", 224), ("resnet50", 224), ("efficientnet_b4", 224)],
)
def test_reference_resolution_is_the_papers_or_torchvisions(name: str, resolution: int) -> None:
    assert reference_resolution(name) == reference_resolution("ms_" + name) == resolution


@pytest.mark.parametrize("fusion", FUSIONS)
def test_options_reach_the_network_and_both_its_backbones(fusion: str) -> None:
    with torch.device("meta"):
        network = build("ms_resnet18", 3, {"fusion": fusion, "projection": False})
        plain = build("resnet18", 3, {"projection": False})
    assert isinstance(network, MSNet)
    assert network.fusion == fusion
    assert (
        network.backbone(0).state_dict().keys() == network.backbone(1).state_dict().keys() == plain.state_dict().keys()
    )


def test_default_network_sums_before_the_relu_and_has_the_papers_projection() -> None:
    with torch.device("meta"):
        network = build("ms_resnet18", 3)
    assert isinstance(network, MSNet)
    assert network.fusion == "before_relu"
    assert "high.blocks.0.body.4.shortcut.0.weight" in network.state_dict()


@pytest.mark.parametrize("name", ["", "ms_", "resnet51", "ms_ms_resnet18", "ResNet18"])
def test_unknown_network_is_named_with_those_that_exist(name: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        build(name, 3)
    assert (caught.value.field, caught.value.value) == ("network", name)
    assert all(known in caught.value.message for known in names())


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_fewer_than_two_classes_are_refused(num_classes: int) -> None:
    with pytest.raises(InvalidOption, match="at least 2") as caught:
        build("ms_resnet18", num_classes)
    assert (caught.value.field, caught.value.value) == ("num_classes", num_classes)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ms_resnet18", {"fusion": "sideways"}),
        ("ms_resnet18", {"fusion": None}),
        ("ms_resnet18", {"fusion": ["after_relu"]}),
        ("resnet18", {"fusion": "after_relu"}),  # nothing to fuse
        ("ms_resnet18", {"gated": "false"}),
        ("resnet18", {"gated": True}),
        ("ms_resnet18", {"depth": 50}),
        ("ms_resnet18", {"projection": "false"}),
        ("resnet18", {"num_classes": 3}),
        ("ms_densenet121", {"projection": True}),
        ("ms_mobilenet_v1_100", {"alpha": 0.5}),  # the name would lie
    ],
)
def test_unknown_option_or_value_is_named(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"), pytest.raises(InvalidOption) as caught:
        build(name, 3, options)
    name_of_it = next(iter(options))
    assert (caught.value.field, caught.value.value) in [("option", name_of_it), ("options", options)]
    assert name_of_it in caught.value.message


def test_options_are_left_as_they_were() -> None:
    options = {"fusion": "after_relu", "projection": False}
    with torch.device("meta"):
        build("ms_resnet18", 3, options)
    assert options == {"fusion": "after_relu", "projection": False}


def test_networks_import_torch_and_errors_alone() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, timeout=100)
    loaded = done.stdout.split()
    ours = {module for module in loaded if module.startswith("service") and not module.startswith("service.networks")}
    assert ours == {"service", "service.errors"}
    assert "service.networks.registry" in loaded
    assert {module.partition(".")[0] for module in loaded} <= sys.stdlib_module_names | {"service", "torch"}
