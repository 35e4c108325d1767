"""The spectra are of the right maps, and say where their magnitude lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.evaluation.spectrum import LOW, OWN, SINGLE, SUM, Spectrum, spectra
from service.networks.backbone import Backbone
from service.networks.msnet import MSNet, upsample
from service.networks.registry import build

SIZE = 128


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(3, 3, SIZE, SIZE)


def _spectrum(map_: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> Spectrum:
    magnitude = np.abs(np.fft.fftshift(np.fft.fft2(map_)))
    return Spectrum(magnitude / magnitude.sum())


def test_slow_wave_lies_below_half_of_nyquist_and_a_chequerboard_above() -> None:
    y, x = np.mgrid[:8, :8]
    slow, fast = np.cos(2 * np.pi * x / 8), (-1.0) ** (x + y)
    assert _spectrum(1 + slow).above_half() == pytest.approx(0, abs=1e-9)
    assert _spectrum(1 + fast).above_half() == pytest.approx(1)
    radii, profile = _spectrum(1 + slow).profile()
    assert radii.tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(profile > 1e-9).tolist() == [0, 1]


@pytest.mark.parametrize(("fusion", "gated"), [("before_relu", False), ("after_relu", False), ("after_relu", True)])
def test_maps_are_what_the_network_adds_up(images: torch.Tensor, fusion: str, gated: bool) -> None:
    torch.manual_seed(1)
    network = build("ms_mobilenet_v1_025", 4, {"fusion": fusion, "gated": gated}).eval()
    assert isinstance(network, MSNet)
    for gate in network.gates.parameters():
        torch.nn.init.normal_(gate)
    gates: list[torch.Tensor] = [*network.gates.parameters()]
    gates = gates or [torch.ones(())] * 5
    found = spectra(network, iter([images[:1], images[1:]]))
    assert set(found) == {LOW, OWN, SUM}
    with torch.inference_mode():
        low = images
        low = torch.nn.functional.avg_pool2d(low, 2)
        first, second = network.backbone(0), network.backbone(1)
        x, last = images, len(first.blocks) - 1
        for i, (low_block, high_block) in enumerate(zip(first.blocks, second.blocks, strict=True)):
            low = low_block(low)
            own = high_block.body(x) if fusion == "before_relu" else high_block(x)  # type: ignore[operator]
            given = upsample(low * gates[i], own.shape[-2:])
            added = own + given
            x = high_block.activation(added) if fusion == "before_relu" else added  # type: ignore[operator]
            if i == last:
                expected = {LOW: given, OWN: own, SUM: x}
    for name, maps in expected.items():
        magnitude = torch.fft.fftshift(torch.fft.fft2(maps.float()).abs().mean((0, 1)))
        assert found[name].magnitude == pytest.approx((magnitude / magnitude.sum()).numpy(), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("fusion", ["before_relu", "after_relu"])
def test_of_three_scales_the_last_two_are_shown(images: torch.Tensor, fusion: str) -> None:
    torch.manual_seed(1)
    network = build("ms3_mobilenet_v1_025", 4, {"fusion": fusion}).eval()
    assert isinstance(network, MSNet)
    found = spectra(network, iter([images]))
    assert set(found) == {LOW, OWN, SUM}
    assert {spectrum.magnitude.shape for spectrum in found.values()} == {(4, 4)}
    assert found[LOW].magnitude[0] == pytest.approx(0, abs=1e-6)  # doubled


def test_doubling_leaves_nothing_at_the_highest_frequency(images: torch.Tensor) -> None:
    found = spectra(build("ms_mobilenet_v1_025", 4).eval(), iter([images]))[LOW].magnitude  # type: ignore[arg-type]
    assert found.shape == (4, 4)
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[:, 0] == pytest.approx(0, abs=1e-6)


def test_single_scale_network_has_one_map_and_keeps_no_hook(images: torch.Tensor) -> None:
    network = build("mobilenet_v1_025", 4).eval()
    assert isinstance(network, Backbone)
    (name,) = found = spectra(network, iter([images]))
    assert name == SINGLE
    assert found[SINGLE].magnitude.sum() == pytest.approx(1)
    assert not network.blocks[-1]._forward_hooks
