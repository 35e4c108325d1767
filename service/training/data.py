"""Folders of photographs as data sets: ``DIR/train/<class>/*`` and ``DIR/val/<class>/*``."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from service.errors import DataError, InvalidImage
from service.images.decode import decode
from service.images.transforms import Preprocessing
from service.training.folders import EXTENSIONS, Walk, check_text, counted, shown, split_folder

# Fewer held-out photographs than this say nothing of a threshold.
MIN_HELD_OUT = 20

NO_CLASS = -1

# So many others are tried for a photograph that cannot be read: if nine in ten cannot, one batch place in 30 is empty.
SUBSTITUTES = 32

# A photograph or a crop of it, uint8 (3, H, W), from its file and its place in the data set.
Reader = Callable[[Path, int], Tensor]


@dataclass(frozen=True, slots=True)
class Photographs:
    """Files and their classes: ``paths[i]`` is of class ``targets[i]``, an index into ``folders``.

    Unlabelled ones have no ``folders``, and ``NO_CLASS`` as targets. ``skipped`` counts the other files by kind.
    """

    folders: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: tuple[int, ...]
    skipped: tuple[tuple[str, int], ...] = ()

    @property
    def is_labelled(self) -> bool:
        """Whether the targets are classes."""
        return bool(self.folders)

    @property
    def empty(self) -> tuple[str, ...]:
        """The classes without a photograph."""
        shown = set(self.targets)
        return tuple(folder for target, folder in enumerate(self.folders) if target not in shown)

    def subset(self, indices: Sequence[int]) -> Photographs:
        """The photographs at ``indices``, in that order; the classes stay."""
        return replace(
            self, paths=tuple(self.paths[i] for i in indices), targets=tuple(self.targets[i] for i in indices)
        )

    def spread(self, most: int) -> Photographs:
        """At most ``most`` of them, evenly spread."""
        count = min(most, len(self))
        return self.subset([i * len(self) // count for i in range(count)])

    def of_classes(self, folders: Sequence[str]) -> Photographs:
        """The same with these classes, which include all of theirs."""
        place = {folder: target for target, folder in enumerate(folders)}
        return replace(
            self, folders=tuple(folders), targets=tuple(place[self.folders[target]] for target in self.targets)
        )

    def __len__(self) -> int:
        return len(self.paths)


def find(root: Path, split: str) -> Photographs:
    """The photographs of ``root/split``, for ``train`` also of ``root`` itself: see ``folders``. A class may be empty.

    Raises:
        DataError: a missing folder, no class in it, no photograph in any, or a class whose name is not UTF-8.
        InvalidOption: ``split`` is not a plain name.
    """
    folder = split_folder(root, split)
    walk = Walk(folder)
    classes, loose = walk.look_in(folder)
    if not classes:
        raise DataError(
            f"{folder} has no class folders; it must hold a folder of photographs for each class",
            field="data",
            value=str(root),
        )
    for each in classes:
        check_text("data", f"class folder in {folder}", each.name)
    walk.skipped["photograph outside of the class folders"] += len(loose)
    found = [(path, target) for target, each in enumerate(classes) for path in walk.photographs(each)]
    if not found:
        raise _nothing(folder, walk)
    paths, targets = zip(*found, strict=True)
    return Photographs(tuple(each.name for each in classes), paths, targets, walk.kinds)


def find_unlabelled(folder: Path, classes: Sequence[str] = ()) -> Photographs:
    """All photographs in ``folder`` and below, without classes.

    Raises:
        DataError: no folder, no photograph in it, or its folders are ``classes``, so that there are labels.
    """
    if not folder.is_dir():
        raise DataError(f"data is {str(folder)!r}, which is not a folder", field="data", value=str(folder))
    walk = Walk(folder)
    paths = walk.photographs(folder)
    if not paths:
        raise _nothing(folder, walk)
    within = {path.relative_to(folder).parts[:-1] for path in paths}
    if classes and all(set(parts) & set(classes) for parts in within):
        raise DataError(
            f"{folder} holds the model's classes: leave out --unlabelled, so that the labels are used",
            field="unlabelled",
            value=str(folder),
        )
    return Photographs((), tuple(paths), (NO_CLASS,) * len(paths), walk.kinds)


def _nothing(folder: Path, walk: Walk) -> DataError:
    return DataError(
        f"{folder} holds no photograph of a known format ({', '.join(EXTENSIONS)}), but {counted(walk.kinds)}",
        field="data",
        value=str(folder),
    )


def hold_out(photographs: Photographs, share: float, seed: int) -> tuple[Photographs, Photographs]:
    """Split off ``share`` of every class: (the rest, the held-out part). The same for the same files, share and
    seed."""
    shuffled = np.random.default_rng(seed).permutation(len(photographs))
    targets = np.asarray(photographs.targets)[shuffled]
    held: list[int] = []
    for target in range(len(photographs.folders)):
        members = shuffled[targets == target]
        held += members[: round(len(members) * share)].tolist()
    rest = sorted(set(range(len(photographs))) - set(held))
    return photographs.subset(rest), photographs.subset(sorted(held))


def split_in_halves(photographs: Photographs) -> tuple[Photographs, Photographs]:
    """Two stratified halves of the held-out photographs: one fits, the other certifies."""
    shuffled = np.random.default_rng(0).permutation(len(photographs))
    by_class = shuffled[np.argsort(np.asarray(photographs.targets)[shuffled], kind="stable")]
    return photographs.subset(sorted(by_class[::2])), photographs.subset(sorted(by_class[1::2]))


@dataclass(frozen=True, slots=True)
class Batch:
    """Images uint8 (B, 3, R, R), targets int64 (B,), and unreadable files."""

    images: Tensor
    targets: Tensor
    unreadable: tuple[str, ...]

    def pin_memory(self) -> Batch:
        """The same, in page-locked memory."""
        images = self.images if self.images.is_cuda else self.images.pin_memory()
        return Batch(images, self.targets.pin_memory(), self.unreadable)


# An image or None, its class, and the files that could not be read on the way to it.
_Item = tuple[Tensor | None, int, tuple[str, ...]]


class _Crops(Dataset[_Item]):
    """An unreadable photograph is replaced by one of ``substitutes`` others, always the same."""

    def __init__(self, photographs: Photographs, crop: Reader, substitutes: int) -> None:
        self.photographs = photographs
        self.crop = crop
        self.substitutes = substitutes

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> _Item:
        others = random.Random(index)
        unreadable: list[str] = []
        for _ in range(1 + self.substitutes):
            path, target = self.photographs.paths[index], self.photographs.targets[index]
            try:
                return self.crop(path, index), target, tuple(unreadable)
            except (InvalidImage, OSError):
                unreadable.append(shown(path))
            index = others.randrange(len(self))
        return None, target, tuple(unreadable)


def _collate(items: list[_Item]) -> Batch:
    readable = [(image, target) for image, target, _ in items if image is not None]
    return Batch(
        torch.stack([image for image, _ in readable]) if readable else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
        torch.tensor([target for _, target in readable], dtype=torch.int64),
        tuple(path for _, _, paths in items for path in paths),
    )


class _Loader(DataLoader[Batch]):
    """Its processes ignore Ctrl-C, which reaches the whole group: otherwise their end would look like a crash."""

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # new processes inherit it
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def loader(
    photographs: Photographs,
    crop: Reader,
    batch_size: int,
    workers: int,
    sampler: Sampler[int] | None = None,
    full: bool = False,
) -> DataLoader[Batch]:
    """Batches of ``photographs``, in order or by ``sampler``, cropped in ``workers`` processes (0: in this one).

    Unreadable photographs are left out. ``full`` batches all have the same size, so that processes which train together
    need no coordination: another photograph takes the place, and the rest at the end is dropped.
    """
    return _Loader(
        _Crops(photographs, crop, SUBSTITUTES if full else 0),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        drop_last=full,
        pin_memory=torch.cuda.is_available(),
    )


@dataclass(frozen=True, slots=True)
class CentreCrop:
    """The decoding of the server, for evaluation."""

    preprocessing: Preprocessing

    def __call__(self, path: Path, index: int) -> Tensor:  # noqa: ARG002
        return decode(path.read_bytes(), self.preprocessing)
