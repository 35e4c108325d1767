"""What a model was trained on, by a digest of each photograph's contents: names and places may change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from service.training.data import Photographs

TRAINED_ON = "trained_on.bin"
DIGEST_BYTES = 8  # two of a million photographs share one by chance in 1 of 37 million data sets


def write_trained_on(folder: Path, photographs: Photographs) -> dict[str, str]:
    """Keep the digests of ``photographs`` in ``folder``; gives the file's name and SHA-256, for ``ModelSpec.files``."""
    data = b"".join(sorted(map(_digest, photographs.paths)))
    (folder / TRAINED_ON).write_bytes(data)
    return {TRAINED_ON: hashlib.sha256(data).hexdigest()}


def knows_trained_on(folder: Path) -> bool:
    """Whether the model in ``folder`` knows; those of earlier versions do not."""
    return (folder / TRAINED_ON).is_file()


def not_trained_on(photographs: Photographs, folder: Path) -> tuple[Photographs, int]:
    """Those of ``photographs`` that the model in ``folder`` was not trained on, and how many it was."""
    known = set(_split((folder / TRAINED_ON).read_bytes()))
    fresh = [index for index, path in enumerate(photographs.paths) if _digest(path) not in known]
    return photographs.subset(fresh), len(photographs) - len(fresh)


def merge_trained_on(folder: Path, sources: Iterable[Path]) -> dict[str, str]:
    """Keep in ``folder`` what any model of ``sources`` was trained on; as ``write_trained_on``."""
    known = {each for source in sources for each in _split((source / TRAINED_ON).read_bytes())}
    data = b"".join(sorted(known))
    (folder / TRAINED_ON).write_bytes(data)
    return {TRAINED_ON: hashlib.sha256(data).hexdigest()}


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=DIGEST_BYTES).digest()


def _split(data: bytes) -> list[bytes]:
    return [data[start : start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES)]
