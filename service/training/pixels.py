"""Photographs decoded once, so that an epoch only crops them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from service.errors import InvalidImage
from service.images.decode import photograph
from service.inference.device import cores
from service.training.data import Photographs

GIGABYTE = 10**9
CHUNK_BYTES = 64_000_000
READ_AHEAD = 64


class DecodedPhotographs:
    """Pixels of photographs: the first ones kept in the memory of ``device``, the rest decoded at each call.

    Args:
        photographs: addressed by their position.
        shorter_side: photographs with a longer shorter side are reduced to it, kept or not.
        budget: bytes that may be kept.
        device: where pixels are kept and returned.
    """

    def __init__(self, photographs: Photographs, shorter_side: int, budget: float, device: torch.device) -> None:
        self.shorter_side = shorter_side
        self.device = device
        self.kept: list[Tensor | None] = []
        self._keep(photographs, budget)

    def __call__(self, path: Path, index: int) -> Tensor:
        """The photograph at ``path``, uint8 (3, H, W) on ``device``, channels last in memory.

        Raises InvalidImage or OSError when it cannot be read.
        """
        kept = self.kept[index] if index < len(self.kept) else None
        return self._decoded(path).to(self.device) if kept is None else kept

    def _keep(self, photographs: Photographs, budget: float) -> None:
        """Copy photograph after photograph into chunks: one allocation each would be slow to share with a process."""
        chunk = torch.empty(0, dtype=torch.uint8)
        with ThreadPoolExecutor(cores()) as threads:
            for start in range(0, len(photographs) if budget else 0, READ_AHEAD):
                for image in threads.map(self._readable, photographs.paths[start : start + READ_AHEAD]):
                    size = 0 if image is None else image.numel()
                    if size > budget:
                        return
                    if size > len(chunk):
                        chunk = torch.empty(max(CHUNK_BYTES, size), dtype=torch.uint8, device=self.device)
                    budget -= size
                    place, chunk = chunk[:size], chunk[size:]
                    self.kept.append(None if image is None else _fill(place, image))

    def _readable(self, path: Path) -> Tensor | None:
        try:
            return self._decoded(path)
        except (InvalidImage, OSError):
            return None

    def _decoded(self, path: Path) -> Tensor:
        image = photograph(path.read_bytes())
        reduction = self.shorter_side / min(image.size)
        if reduction < 1:
            width, height = (max(1, round(side * reduction)) for side in image.size)
            image = image.resize((width, height), reducing_gap=2)
        pixels: Tensor = pil_to_tensor(image)
        return pixels


def decoded(
    photographs: Photographs, shorter_side: int, budget: float, device: torch.device, processes: int = 1
) -> DecodedPhotographs:
    """Kept on a GPU if it has room for all of them; otherwise on the CPU, where several processes decode the rest.

    ``budget`` is for each GPU's memory, or for the machine's, which ``processes`` share.
    """
    if device.type != "cpu":
        with suppress(torch.OutOfMemoryError):
            on_device = DecodedPhotographs(photographs, shorter_side, budget, device)
            if len(on_device.kept) == len(photographs):
                return on_device
    return DecodedPhotographs(photographs, shorter_side, budget / processes, torch.device("cpu"))


def _fill(place: Tensor, image: Tensor) -> Tensor:
    """``image`` (C, H, W) copied into the bytes ``place``, channels last."""
    channels, height, width = image.shape
    kept = place.view(height, width, channels).permute(2, 0, 1)
    return kept.copy_(image)
