"""Folders of photographs as data sets: ``DIR/train/<class>/*`` and ``DIR/val/<class>/*``."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from service.errors import DataError, InvalidImage, InvalidOption
from service.images.decode import decode
from service.images.transforms import Preprocessing

# Fewer held-out photographs than this say nothing of a threshold.
MIN_HELD_OUT = 20

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")

# A photograph or a crop of it, uint8 (3, H, W), from its file and its place in the data set.
Reader = Callable[[Path, int], Tensor]


@dataclass(frozen=True, slots=True)
class Photographs:
    """Labelled files: ``paths[i]`` shows class ``targets[i]``, an index into ``folders``."""

    folders: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: tuple[int, ...]

    def subset(self, indices: Sequence[int]) -> Photographs:
        """The photographs at ``indices``, in that order; the classes stay."""
        return Photographs(
            self.folders,
            tuple(self.paths[i] for i in indices),
            tuple(self.targets[i] for i in indices),
        )

    def spread(self, most: int) -> Photographs:
        """At most ``most`` of them, evenly spread."""
        count = min(most, len(self))
        return self.subset([i * len(self) // count for i in range(count)])

    def __len__(self) -> int:
        return len(self.paths)


def find(root: Path, split: str) -> Photographs:
    """The photographs of ``root/split``; for ``train`` also of ``root`` itself when it holds the class folders.

    Raises:
        DataError: a missing folder, no class in it, fewer than two classes, or a class without photographs.
        InvalidOption: ``split`` is no plain name.
    """
    if not root.is_dir():
        raise DataError(f"data is {str(root)!r}, which is no folder", field="data", value=str(root))
    if split in ("", "..") or Path(split).name != split:
        raise InvalidOption("split", split, f"the name of a folder in {root}")
    folder = root / split
    if not folder.is_dir():
        if split != "train" or (root / "val").is_dir():
            raise DataError(
                f"{root} has no folder {split}/; it must hold a folder of photographs for each class",
                field="data",
                value=str(root),
            )
        folder = root
    try:
        found = ImageFolder(str(folder), is_valid_file=_looks_like_image)
    except FileNotFoundError as error:  # torchvision names the empty classes, or the lack of any
        raise DataError(f"{folder}: {error}", field="data", value=str(root)) from error
    if len(found.classes) < 2:
        raise DataError(
            f"{folder} holds {len(found.classes)} class; it takes at least 2", field="data", value=str(root)
        )
    paths, targets = zip(*found.samples, strict=True)
    return Photographs(tuple(found.classes), tuple(map(Path, paths)), targets)


def find_unlabelled(root: Path) -> Photographs:
    """Every photograph below ``root``, of no known class: targets are -1.

    Raises:
        DataError: a missing folder, or none in it.
    """
    if not root.is_dir():
        raise DataError(f"data is {str(root)!r}, which is no folder", field="data", value=str(root))
    paths = tuple(sorted(path for path in root.rglob("*") if _looks_like_image(str(path)) and path.is_file()))
    if not paths:
        raise DataError(f"{root} holds no photograph", field="data", value=str(root))
    return Photographs((), paths, (-1,) * len(paths))


def _looks_like_image(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS)


def hold_out(photographs: Photographs, share: float, seed: int) -> tuple[Photographs, Photographs]:
    """Split off ``share`` of every class: (the rest, the held out). The same for the same files, share and seed."""
    shuffled = np.random.default_rng(seed).permutation(len(photographs))
    targets = np.asarray(photographs.targets)[shuffled]
    held: list[int] = []
    for target in range(len(photographs.folders)):
        members = shuffled[targets == target]
        held += members[: round(len(members) * share)].tolist()
    rest = sorted(set(range(len(photographs))) - set(held))
    return photographs.subset(rest), photographs.subset(sorted(held))


def halve(photographs: Photographs) -> tuple[Photographs, Photographs]:
    """Two stratified halves of the held-out photographs: one fits, the other certifies."""
    shuffled = np.random.default_rng(0).permutation(len(photographs))
    by_class = shuffled[np.argsort(np.asarray(photographs.targets)[shuffled], kind="stable")]
    return photographs.subset(sorted(by_class[::2])), photographs.subset(sorted(by_class[1::2]))


def labels(folders: Sequence[str], class_names: Path | None) -> tuple[str, ...]:
    """A readable label for each class folder, from a JSON file of folder -> label, or the folder's name itself.

    Raises:
        DataError: the file cannot be read, or lacks a folder.
    """
    if class_names is None:
        return tuple(folders)
    try:
        names = json.loads(class_names.read_text())
        return tuple(str(names[folder]) for folder in folders)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"class names {class_names} cannot be read: {error}", field="class_names") from error
    except KeyError as error:
        raise DataError(f"class names {class_names} lack folder {error}", field="class_names") from error


@dataclass(frozen=True, slots=True)
class Batch:
    """Images uint8 (B, 3, R, R), targets int64 (B,), and the files that could not be read."""

    images: Tensor
    targets: Tensor
    unreadable: tuple[str, ...]

    def pin_memory(self) -> Batch:
        """The same, in page-locked memory."""
        images = self.images if self.images.is_cuda else self.images.pin_memory()
        return Batch(images, self.targets.pin_memory(), self.unreadable)


class _Crops(Dataset[tuple[Tensor | None, int, str]]):
    def __init__(self, photographs: Photographs, crop: Reader) -> None:
        self.photographs = photographs
        self.crop = crop

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, str]:
        path = self.photographs.paths[index]
        target = self.photographs.targets[index]
        try:
            return self.crop(path, index), target, str(path)
        except (InvalidImage, OSError):
            return None, target, str(path)


def _collate(items: list[tuple[Tensor | None, int, str]]) -> Batch:
    readable = [(image, target) for image, target, _ in items if image is not None]
    return Batch(
        torch.stack([image for image, _ in readable]) if readable else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
        torch.tensor([target for _, target in readable], dtype=torch.int64),
        tuple(path for image, _, path in items if image is None),
    )


class _Loader(DataLoader[Batch]):
    """Its processes never see Ctrl-C, which reaches the whole group: one that died of it would look like a crash."""

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
    drop_last: bool = False,
) -> DataLoader[Batch]:
    """Batches of ``photographs``, in order or by ``sampler``, cropped in ``workers`` processes (0: in this one)."""
    return _Loader(
        _Crops(photographs, crop),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
    )


@dataclass(frozen=True, slots=True)
class CentreCrop:
    """The serving path's own decoding, for evaluation."""

    preprocessing: Preprocessing

    def __call__(self, path: Path, index: int) -> Tensor:  # noqa: ARG002
        return decode(path.read_bytes(), self.preprocessing)


class RandomCrop:
    """A random crop of a photograph's ``pixels``, resized to ``resolution``, flipped half of the time.

    With ``augment`` one more thing happens to it, as strongly as chance has it: it is turned, sheared or shifted, or
    its colours or its sharpness change (Müller and Hutter, "TrivialAugment", 2021).

    The same for the same (seed, epoch, photograph), whichever process draws it: a resumed run sees what
    an uninterrupted one would have seen.
    """

    def __init__(self, pixels: Reader, resolution: int, min_scale: float, augment: bool, seed: int, epoch: int) -> None:
        self.pixels = pixels
        self.seed = seed
        self.epoch = epoch
        steps = [v2.RandomResizedCrop(resolution, scale=(min_scale, 1.0)), v2.RandomHorizontalFlip()]
        if augment:
            steps.append(v2.TrivialAugmentWide())
        self.transform = v2.Compose(steps)

    def __call__(self, path: Path, index: int) -> Tensor:
        pixels = self.pixels(path, index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, self.epoch, index)) & 0x7FFF_FFFF_FFFF_FFFF)
            crop: Tensor = self.transform(pixels)
        return crop


class EpochSampler(Sampler[int]):
    """This process's share of one epoch's shuffled order, whole steps only; the same order whatever ``world`` is."""

    def __init__(self, size: int, seed: int, epoch: int, rank: int, world: int) -> None:
        order = np.random.default_rng((seed, epoch)).permutation(size)
        self.indices = order[rank::world][: size // world].tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
