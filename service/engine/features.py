"""The low features of escalated images, copied out of their batches into memory of a fixed size."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

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
        self._rooms: tuple[_Room, ...] | None = None
        self._allocating = threading.Lock()

    @property
    def bytes_each(self) -> int:
        """What one image takes; 0 until the first state came."""
        return sum(room.memory[0].nbytes for room in self._rooms or ())

    @torch.inference_mode()
    def put(self, state: LowState, rows: Sequence[int], slots: Sequence[int]) -> None:
        """Copy ``rows`` of ``state`` into ``slots``."""
        given = (state.logits, *state.features)
        device = state.logits.device
        source, target = torch.tensor(rows, device=device), torch.tensor(slots, device=device)
        for room, tensor in zip(self._allocated(given), given, strict=True):
            room.memory.index_copy_(0, target, room.inward(tensor).index_select(0, source))
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # another thread's stream will read it

    @torch.inference_mode()
    def take(self, slots: Sequence[int]) -> LowState:
        """A batch of what ``slots`` hold, in that order."""
        assert self._rooms is not None
        index = torch.tensor(slots, device=self._rooms[0].memory.device)
        logits, *features = (room.outward(room.memory.index_select(0, index)) for room in self._rooms)
        return LowState(logits, tuple(features))

    def _allocated(self, like: Sequence[Tensor]) -> tuple[_Room, ...]:
        with self._allocating:
            if self._rooms is None:
                self._rooms = tuple(_Room.of(tensor, self.slots) for tensor in like)
            return self._rooms


@dataclass(frozen=True, slots=True)
class _Room:
    """Memory for one tensor of every slot, with rows laid out as they came: selecting rows keeps no other layout."""

    memory: Tensor
    is_channels_last: bool

    @classmethod
    def of(cls, like: Tensor, slots: int) -> _Room:
        last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
        rows = like.permute(0, 2, 3, 1) if last else like
        return cls(torch.empty((slots, *rows.shape[1:]), dtype=like.dtype, device=like.device), last)

    def inward(self, tensor: Tensor) -> Tensor:
        return tensor.permute(0, 2, 3, 1) if self.is_channels_last else tensor

    def outward(self, rows: Tensor) -> Tensor:
        return rows.permute(0, 3, 1, 2) if self.is_channels_last else rows
