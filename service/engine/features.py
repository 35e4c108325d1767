"""Stores the features of escalated images between stages, copied out of their batches into memory of a fixed size."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.networks.cascade import Carried


class FeaturePool:
    """Features of ``slots`` images between two stages, on the device that computed them.

    A view of a row would keep its whole batch in memory; a copy per image would need its own allocation. The memory is
    allocated by the first batch of a stage, and freed with the pool. The holder of a slot decides who may read or write
    it.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._rooms: dict[int, tuple[_Room, ...]] = {}
        self._allocating = threading.Lock()

    @property
    def bytes_each(self) -> int:
        """Largest size of one image's features; 0 until the first batch."""
        return max((sum(room.memory[0].nbytes for room in rooms) for rooms in self._rooms.values()), default=0)

    @torch.inference_mode()
    def put(self, stage: int, carried: Carried, rows: Sequence[int], slots: Sequence[int]) -> None:
        """Copy ``rows`` of the features from ``stage`` into ``slots``."""
        if not carried:
            self._rooms.setdefault(stage, ())
            return
        device = carried[0].device
        source, target = torch.tensor(rows, device=device), torch.tensor(slots, device=device)
        for room, tensor in zip(self._allocated(stage, carried), carried, strict=True):
            room.memory.index_copy_(0, target, room.inward(tensor).index_select(0, source))
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # another thread's stream will read it

    @torch.inference_mode()
    def take(self, stage: int, slots: Sequence[int]) -> Carried:
        """A batch of the features from ``stage`` in ``slots``, in that order."""
        rooms = self._rooms[stage]
        if not rooms:
            return ()
        index = torch.tensor(slots, device=rooms[0].memory.device)
        return tuple(room.outward(room.memory.index_select(0, index)) for room in rooms)

    def _allocated(self, stage: int, like: Carried) -> tuple[_Room, ...]:
        with self._allocating:
            if stage not in self._rooms:
                self._rooms[stage] = tuple(_Room.of(tensor, self.slots) for tensor in like)
            return self._rooms[stage]


@dataclass(frozen=True, slots=True)
class _Room:
    """Memory for one tensor per slot, in the layout of the batch: selecting rows keeps no other layout."""

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
