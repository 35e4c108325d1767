"""One training over several processes, as started by ``torchrun``; alone, every call here does nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from service.errors import InvalidOption

T = TypeVar("T")

DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Processes:
    """This process's rank among ``world``, of which ``here`` run on this machine.

    ``device`` is its GPU, None for the device of the options.
    """

    rank: int = 0
    world: int = 1
    here: int = 1
    device: torch.device | None = None

    @classmethod
    @contextmanager
    def join(cls, device: str) -> Iterator[Processes]:
        """Join the group that ``torchrun`` announced in the environment, if any; leave it at the end."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            yield cls()
            return
        here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        on_gpu = device != "cpu" and torch.cuda.is_available()
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else None
        if own is not None:
            if own.index >= torch.cuda.device_count():
                raise InvalidOption(
                    "nproc-per-node", here, f"at most {torch.cuda.device_count()}, the GPUs of this machine"
                )
            torch.cuda.set_device(own)
        dist.init_process_group("nccl" if on_gpu else "gloo")
        try:
            yield cls(dist.get_rank(), dist.get_world_size(), here, own)
        finally:
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and reports."""
        return self.rank == 0

    def share(self, batch_size: int | None, photographs: int) -> int:
        """Images per step in this process; see ``TrainOptions.batch_size``.

        Raises:
            InvalidOption: ``batch_size`` cannot be divided evenly, or leaves fewer than two images, which batch norm
            needs.
        """
        if batch_size is None:
            return max(2, min(DEFAULT_BATCH_SIZE, photographs // 8) // self.world)
        if batch_size % self.world or batch_size < 2 * self.world:
            raise InvalidOption(
                "batch_size", batch_size, f"a multiple of the {self.world} processes, 2 or more for each"
            )
        return batch_size // self.world

    def sum(self, value: Tensor) -> Tensor:
        """Sum of ``value`` over all processes."""
        if self.world > 1:
            value = value.to(self.device or "cpu", copy=True)
            dist.all_reduce(value)
        return value.cpu()

    def union(self, values: set[str]) -> set[str]:
        """Union of ``values`` over all processes."""
        if self.world == 1:
            return values
        gathered: list[set[str]] = [set()] * self.world
        dist.all_gather_object(gathered, values)
        return set().union(*gathered)

    def from_first(self, make: Callable[[], T]) -> T:
        """The result of ``make`` in the first process, which alone calls it, for all."""
        if self.world == 1:
            return make()
        made: list[T | None] = [make() if self.is_first else None]
        dist.broadcast_object_list(made)
        return made[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()
