"""The low features of escalated images, copied out of their batches into memory of a fixed size."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from service.networks.msnet import LowState


class FeaturePool:
    """Room for the low state of ``slots`` images, on the device it was computed on.

    A view of a row would keep its whole batch alive; a copy for each image, its own allocation. The memory is
    taken when the first state comes, and nothing is ever given back before the pool is.
    Who may write or read a slot is for the holder of the slot to know.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._store: tuple[Tensor, ...] | None = None
        self._allocating = threading.Lock()

    @property
    def bytes_each(self) -> int:
        """What one image takes; 0 until the first state came."""
        return sum(tensor[0].nbytes for tensor in self._store or ())

    @torch.inference_mode()
    def put(self, state: LowState, rows: Sequence[int], slots: Sequence[int]) -> None:
        """Copy ``rows`` of ``state`` into ``slots``."""
        given = (state.logits, *state.features)
        device = state.logits.device
        source, target = torch.tensor(rows, device=device), torch.tensor(slots, device=device)
        for kept, tensor in zip(self._stored(given), given, strict=True):
            kept.index_copy_(0, target, tensor.index_select(0, source))
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # another thread's stream will read it

    @torch.inference_mode()
    def take(self, slots: Sequence[int]) -> LowState:
        """A batch of what ``slots`` hold, in that order."""
        assert self._store is not None
        index = torch.tensor(slots, device=self._store[0].device)
        logits, *features = (tensor.index_select(0, index) for tensor in self._store)
        return LowState(logits, tuple(features))

    def _stored(self, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with self._allocating:
            if self._store is None:
                self._store = tuple(_room(tensor, self.slots) for tensor in like)
            return self._store


def _room(like: Tensor, slots: int) -> Tensor:
    """Uninitialised (slots, ...), its rows laid out in memory like those of ``like``."""
    room = torch.empty((slots, *like.shape[1:]), dtype=like.dtype, device=like.device)
    is_channels_last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return room.to(memory_format=torch.channels_last) if is_channels_last else room
