"""The cost of every network against the tables of "High Frequency Residual Learning" (BMVC 2019)."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from service.networks.cost import cost
from service.stages import mean_cost

# Millions of multiply-adds with 1000 classes, as printed. Per network: resolution -> value.
PRINTED = {
    ("resnet18", True): {128: "596.89", 224: "1826.92", 256: "2386.02"},
    ("resnet18", False): {128: "592.70", 224: "1814.07", 256: "2369.25"},
    ("mobilenet_v1_100", None): {128: "186.40", 192: "418.12", 224: "568.74", 256: "742.53"},
    ("mobilenet_v1_075", None): {128: "106.8", 224: "325.40", 256: "424.78"},
    ("mobilenet_v1_050", None): {128: "49.2", 224: "149.50", 256: "195.10"},
    ("mobilenet_v1_025", None): {128: "13.57", 224: "41.03", 256: "53.51"},
    ("densenet121", None): {112: "702.39", 224: "2834.16"},
}
CELLS = [(*network, px, text) for network, row in PRINTED.items() for px, text in row.items()]

# Network, high resolution, then (exit rate in percent, mean cost in millions) as the paper's results imply and state.
RESULTS = {
    ("ms_resnet18", 256): [(65.8, 1413), (56.9, 1625), (49.1, 1811), (26.2, 2358)],
    ("ms_mobilenet_v1_100", 256): [(100, 186), (68.9, 417), (48.9, 566), (25.6, 739)],
    ("ms_mobilenet_v1_075", 256): [(49.6, 321), (25.1, 425)],
    ("ms_mobilenet_v1_050", 256): [(49.3, 148), (25.3, 195)],
    ("ms_mobilenet_v1_025", 256): [(48.7, 41), (24.5, 54)],
    ("ms_densenet121", 224): [(64.8, 1700), (26.0, 2800)],
}
ROWS = [(*network, percent, mmacs) for network, rows in RESULTS.items() for percent, mmacs in rows]


@cache
def priced(name: str, projection: bool | None, resolution: int) -> tuple[float, ...]:
    options: dict[str, object] = {} if projection is None else {"projection": projection}
    return cost(name, 1000, resolution, options)


def rounded_like(value: float, printed: str) -> str:
    return f"{value:.{len(printed.partition('.')[2])}f}"


@pytest.mark.parametrize(("name", "projection", "resolution", "printed"), CELLS)
def test_single_scale_cost_is_the_printed_one(
    name: str, projection: bool | None, resolution: int, printed: str
) -> None:
    (single,) = priced(name, projection, resolution)
    assert rounded_like(single, printed) == printed


@pytest.mark.parametrize(("name", "projection", "resolution", "printed"), CELLS)
def test_high_pass_costs_as_much_as_the_single_scale_network(
    name: str, projection: bool | None, resolution: int, printed: str
) -> None:
    both = priced("ms_" + name, projection, resolution)
    assert rounded_like(both[1], printed) == printed


@pytest.mark.parametrize(("name", "projection", "resolution", "printed"), CELLS)
def test_low_pass_costs_as_much_as_the_single_scale_network_at_half_resolution(
    name: str, projection: bool | None, resolution: int, printed: str
) -> None:
    both = priced("ms_" + name, projection, 2 * resolution)
    assert rounded_like(both[0], printed) == printed


@pytest.mark.parametrize(("name", "resolution", "percent", "mmacs"), ROWS)
def test_mean_cost_of_the_papers_exit_rate_is_the_papers(
    name: str, resolution: int, percent: float, mmacs: int
) -> None:
    both = priced(name, None, resolution)
    half_a_unit_of_rate = 0.0005 * both[1]  # exit rates are known to 0.1 %
    half_a_unit_of_cost = 1.0 if "densenet" in name else 0.5  # DenseNet's figures are rounded to hundreds
    assert mean_cost((percent / 100, 1 - percent / 100), both) == pytest.approx(
        mmacs, abs=half_a_unit_of_rate + half_a_unit_of_cost
    )


def test_mean_cost_runs_from_both_passes_to_the_low_pass_alone() -> None:
    assert mean_cost((0, 1), (2, 8)) == 10
    assert mean_cost((0.25, 0.75), (2, 8)) == 8
    assert mean_cost((1, 0), (2, 8)) == 2
    assert mean_cost((0.5, 0.25, 0.25), (1, 2, 4)) == 0.5 * 1 + 0.25 * 3 + 0.25 * 7


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v1_050"])
def test_three_scales_cost_the_single_scale_networks_of_each_size(name: str) -> None:
    sizes = [priced(name, None, side)[0] for side in (64, 128, 256)]
    assert priced("ms3_" + name, None, 256) == pytest.approx(sizes)


@pytest.mark.parametrize("fusion", ["before_relu", "after_relu"])
def test_where_the_sum_is_taken_costs_nothing(fusion: str) -> None:
    assert cost("ms_resnet18", 1000, 256, {"fusion": fusion}) == priced("ms_resnet18", None, 256)


def test_each_class_costs_one_multiply_add_per_feature_and_head() -> None:
    few, many = cost("ms_mobilenet_v1_100", 10, 128), cost("ms_mobilenet_v1_100", 110, 128)
    assert [b - a for a, b in zip(few, many, strict=True)] == pytest.approx([0.1024, 0.1024])


def test_networks_built_after_a_cost_still_live_on_the_cpu() -> None:
    cost("mobilenet_v1_025", 10, 64)
    assert torch.empty(1).device.type == "cpu"
    assert torch.is_grad_enabled()


def test_gates_cost_no_multiply_adds_of_convolutions_or_linear_layers() -> None:
    assert cost("ms_resnet18", 1000, 256, {"gated": True}) == cost("ms_resnet18", 1000, 256)
