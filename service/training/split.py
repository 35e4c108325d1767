"""What a network was trained on, known by the contents of the photographs: names and places may change.

A run folder, and a model published from it, has ``trained_on.txt``: a digest per line of every photograph that its
weights have seen. First those of its own training, in their order; after an empty line those of the model that it
started from. ``model.json`` has the file's SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from service.errors import DataError
from service.inference.device import cores
from service.store import ModelSpec, read_spec, verified
from service.training.data import Photographs, hold_out

TRAINED_ON = "trained_on.txt"
SHA256 = "trained_on_sha256"  # of that file, in ``ModelSpec.training``

# Of two million photographs, two have the same digest by chance once in ten million data sets.
DIGEST_BYTES = 8


def digests(paths: Sequence[Path]) -> tuple[str, ...]:
    """A digest of the contents of each file, hexadecimal; "" of one that cannot be read."""
    with ThreadPoolExecutor(cores()) as threads:
        return tuple(threads.map(_digest, paths))


def _digest(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=DIGEST_BYTES).hexdigest()
    except OSError:
        return ""


def split(
    photographs: Photographs, contents: Sequence[str], share: float, seed: int
) -> tuple[Photographs, Photographs, tuple[str, ...]]:
    """As ``hold_out``, but what is there more than once, by ``contents``, is either trained on or held out.

    Without ``contents`` it is ``hold_out``, which knows a photograph by its place.

    Returns:
        What to train on, what is held out, and the digests of the former in their order.
    """
    train, held = hold_out(photographs, share, seed)
    if not contents:
        return train, held, ()
    of = dict(zip(photographs.paths, contents, strict=True))
    trained_on = {of[path] for path in train.paths}
    held_paths = {path for path in held.paths if of[path] not in trained_on}
    apart: tuple[list[int], list[int]] = [], []
    for index, path in enumerate(photographs.paths):
        apart[path in held_paths].append(index)
    train, held = map(photographs.subset, apart)
    return train, held, tuple(of[path] for path in train.paths if of[path])


def to_text(own: Sequence[str], inherited: Iterable[str]) -> str:
    """The text of ``trained_on.txt``."""
    before = sorted(set(inherited) - set(own))
    return "".join(f"{digest}\n" for digest in (*own, "", *before))


def own_part(text: str) -> tuple[str, ...]:
    """The digests of a run's own training, from the text of its ``trained_on.txt``."""
    return tuple(text.partition("\n\n")[0].split())


def trained_on(folder: Path, spec: ModelSpec) -> frozenset[str] | None:
    """The digests of all that a model's weights have seen; None where an older version trained it and kept none.

    Raises BrokenModel when the file is missing or has been changed.
    """
    if SHA256 not in spec.training:
        return None
    return frozenset(verified(folder, TRAINED_ON, spec.training[SHA256]).decode().split())


def not_trained_on(photographs: Photographs, folder: Path) -> Photographs:
    """Those of any ``photographs`` that the model in ``folder`` was not trained on, by contents, and each once.

    How many are left out, and why, is counted in ``skipped``. A model of an older version kept no contents: of the
    photographs that it was trained with, and of no others, it can be told from their number and order.

    Raises:
        NotFound, BrokenModel: no model in ``folder``, or one that cannot be read.
        DataError: an older version's, and other photographs.
    """
    spec = read_spec(folder)
    known = trained_on(folder, spec)
    if known is None:
        return _held_out_by_place(photographs, spec)
    kept: list[int] = []
    seen: set[str] = set()
    contents = digests(photographs.paths)
    for index, digest in enumerate(contents):
        if digest not in known and (digest not in seen or not digest):
            kept.append(index)
            seen.add(digest)
    trained = sum(digest in known for digest in contents)
    left_out = ("trained on", trained), ("there already", len(contents) - trained - len(kept))
    return replace(photographs.subset(kept), skipped=(*photographs.skipped, *(each for each in left_out if each[1])))


def _held_out_by_place(photographs: Photographs, spec: ModelSpec) -> Photographs:
    expected = spec.told("train_images") + spec.told("calibration_images")
    if len(photographs) != expected:
        raise DataError(
            f"there are {len(photographs)} training photographs and were {expected} when the model was trained, by a "
            "version that kept their number alone: which ones it has not seen cannot be told any more",
            field="data",
            value=len(photographs),
            bound=expected,
        )
    return hold_out(photographs, spec.told("calibration_share"), spec.told("seed"))[1]
