"""Learning rates over a run, and which weights decay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from service.networks.registry import build, names
from service.training.options import TrainOptions, paper_recipe
from service.training.schedule import learning_rate, parameter_groups

MakeOptions = Callable[..., TrainOptions]


def test_cosine_warms_up_to_its_peak_and_falls_to_nothing(make_options: MakeOptions) -> None:
    options = make_options(epochs=100, learning_rate=0.2, warmup=0.1)
    rates = [learning_rate(options, epoch) for epoch in (0, 5, 10, 55, 100)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.1, 0], abs=1e-12)


def test_cosine_never_rises_after_the_warm_up(make_options: MakeOptions) -> None:
    options = make_options(epochs=10)
    rates = [learning_rate(options, step / 100) for step in range(1001)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize(("warmup", "expected"), [(0, [0.2, 0.1, 0]), (1, [0, 0.1, 0.2])])
def test_warm_up_may_be_nothing_or_everything(make_options: MakeOptions, warmup: float, expected: list[float]) -> None:
    options = make_options(epochs=10, learning_rate=0.2, warmup=warmup)
    assert [learning_rate(options, epoch) for epoch in (0, 5, 10)] == pytest.approx(expected, abs=1e-12)


def test_the_papers_steps_divide_by_ten_at_30_60_and_90(make_options: MakeOptions) -> None:
    options = make_options(**paper_recipe("ms_resnet18"))
    rates = [learning_rate(options, epoch) for epoch in (0, 29.99, 30, 59.99, 60, 89.99, 90, 119.99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize("name", names())
def test_every_parameter_is_in_exactly_one_group(name: str) -> None:
    with torch.device("meta"):
        network = build(name, 3)
    grouped = [id(parameter) for group in parameter_groups(network, 0.1) for parameter in _parameters(group)]
    assert sorted(grouped) == sorted(map(id, network.parameters()))


@pytest.mark.parametrize("name", names())
def test_norms_biases_and_depthwise_convolutions_do_not_decay(name: str) -> None:
    with torch.device("meta"):
        network = build(name, 3)
    decayed, kept = parameter_groups(network, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0)
    kept_ids = set(map(id, _parameters(kept)))
    for module in network.modules():
        is_depthwise = isinstance(module, nn.Conv2d) and module.weight.shape[1] == 1
        is_mixing = isinstance(module, nn.Conv2d | nn.Linear) and not is_depthwise
        for parameter_name, parameter in module.named_parameters(recurse=False):
            assert (id(parameter) in kept_ids) != (is_mixing and parameter_name == "weight")


def _parameters(group: dict[str, object]) -> list[nn.Parameter]:
    parameters = group["params"]
    assert isinstance(parameters, list)
    return parameters
