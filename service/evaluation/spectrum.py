"""Which frequencies the last feature maps hold: the mean magnitude of their two-dimensional Fourier transform."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from service.networks.backbone import Backbone
from service.networks.msnet import MSNet, upsample

Floats = npt.NDArray[np.float64]

SINGLE, LOW, OWN, SUM = "single-scale", "low, upsampled", "high before the sum", "the sum"


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Mean over images and channels, as a share of the sum over all frequencies; the mean in the centre.

    ``magnitude`` (h, w): frequency (0, 0) at (h // 2, w // 2), in cycles per image.
    """

    magnitude: Floats

    @property
    def reach(self) -> float:
        """The highest frequency along an axis (Nyquist's), in cycles per image."""
        longest: int = max(self.magnitude.shape)
        return longest / 2

    def profile(self) -> tuple[Floats, Floats]:
        """Radius in whole cycles per image, up to ``reach``, and the mean share of the frequencies at that radius."""
        radius = self._radius().round()
        radii = np.arange(int(self.reach) + 1, dtype=np.float64)
        return radii, np.array([self.magnitude[radius == r].mean() for r in radii])

    def above_half(self) -> float:
        """The share of the magnitude, the mean value aside, that lies beyond half of ``reach``."""
        radius = self._radius()
        waves, above = (float(self.magnitude[radius > limit].sum()) for limit in (0, self.reach / 2))
        return above / waves

    def _radius(self) -> Floats:
        height, width = self.magnitude.shape
        y, x = np.ogrid[:height, :width]
        radius: Floats = np.hypot(y - height // 2, x - width // 2)
        return radius


class _Sum:
    """Adds up the spectra of map after map."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, maps: Tensor) -> None:
        """(B, C, H, W)."""
        magnitude = torch.fft.fft2(maps.float()).abs().mean(1).sum(0).double().cpu()  # (H, W)
        self.total = magnitude if self.total is None else self.total + magnitude

    def spectrum(self) -> Spectrum:
        assert self.total is not None
        return Spectrum(torch.fft.fftshift(self.total / self.total.sum()).numpy())


def spectra(network: MSNet | Backbone, batches: Iterator[Tensor]) -> dict[str, Spectrum]:
    """Of the last maps of ``network`` (evaluation mode): ``SINGLE``; or ``LOW``, ``OWN`` and ``SUM``.

    ``batches`` gives normalised images (B, 3, R, R). The map of the stage before is doubled as the last one
    receives it, so that all three are of one size.
    """
    names = (LOW, OWN, SUM) if isinstance(network, MSNet) else (SINGLE,)
    sums = {name: _Sum() for name in names}
    with torch.inference_mode(), _last_maps(network) as taken:
        for images in batches:
            network(images)
            for name, maps in taken().items():
                sums[name].add(maps)
    return {name: total.spectrum() for name, total in sums.items()}


@contextmanager
def _last_maps(network: MSNet | Backbone) -> Iterator[Callable[[], dict[str, Tensor]]]:
    """What it gives tells the maps of the latest pass."""
    seen: dict[str, Tensor] = {}
    hooks = []

    def watch(name: str, module: nn.Module) -> None:
        hooks.append(module.register_forward_hook(lambda module, inputs, output: seen.update({name: output})))

    if isinstance(network, MSNet):
        last = network.backbone(network.depth - 1).blocks[-1]
        before = network.backbone(network.depth - 2).blocks[-1]
        watch(LOW, before.activation if network.fusion == "before_relu" else before)  # type: ignore[arg-type]
        if network.fusion == "before_relu":
            watch(OWN, last.body)  # type: ignore[arg-type]
            watch(SUM, last.activation)  # type: ignore[arg-type]
        else:
            watch(OWN, last)
    else:
        watch(SINGLE, network.blocks[-1])

    def taken() -> dict[str, Tensor]:
        if isinstance(network, Backbone):
            return {SINGLE: seen[SINGLE]}
        gates = list(network.gates.parameters())
        let_through = seen[LOW] * gates[-1] if gates else seen[LOW]
        low, own = upsample(let_through, seen[OWN].shape[-2:]), seen[OWN]
        return {LOW: low, OWN: own, SUM: seen[SUM] if SUM in seen else own + low}

    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()
