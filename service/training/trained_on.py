"""Training photographs of a network, recognised by their contents, because names and places may change.

A run folder, and a model published from it, has ``trained_on.bin``: the digests of all photographs that its weights
have seen, sorted, 8 bytes each, including those of the model that it started from (``--init``). ``ModelSpec.files`` has
the file's SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from service.inference.device import cores
from service.model_spec import SPEC
from service.store import read_spec, verified
from service.training.data import Photographs, hold_out

TRAINED_ON = "trained_on.bin"
DIGEST_BYTES = 8  # two of a million photographs share one by chance in 1 of 37 million data sets


def digests(paths: Sequence[Path]) -> tuple[bytes, ...]:
    """A digest of the contents of each file; empty for an unreadable one."""
    with ThreadPoolExecutor(cores()) as threads:
        return tuple(threads.map(_digest, paths))


def _digest(path: Path) -> bytes:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=DIGEST_BYTES).digest()
    except OSError:
        return b""


def split(
    photographs: Photographs, contents: Sequence[bytes], share: float, seed: int
) -> tuple[Photographs, Photographs, frozenset[bytes]]:
    """As ``hold_out``, but all copies of a photograph, by ``contents``, are in the same part.

    Without ``contents`` it is ``hold_out``, which identifies a photograph by its path.

    Returns:
        The training part, the held-out part, and the digests of the former.
    """
    train, held = hold_out(photographs, share, seed)
    if not contents:
        return train, held, frozenset()
    of = dict(zip(photographs.paths, contents, strict=True))
    known = frozenset(of[path] for path in train.paths)
    held_paths = {path for path in held.paths if of[path] not in known}
    apart: tuple[list[int], list[int]] = [], []
    for index, path in enumerate(photographs.paths):
        apart[path in held_paths].append(index)
    train, held = map(photographs.subset, apart)
    return train, held, known - {b""}


def write_trained_on(folder: Path, known: Iterable[bytes]) -> dict[str, str]:
    """Store the digests ``known`` in ``folder``; returns the file's name and SHA-256, for ``ModelSpec.files``."""
    (folder / TRAINED_ON).write_bytes(b"".join(sorted(set(known))))
    return recorded(folder)


def recorded(folder: Path) -> dict[str, str]:
    """The entry of ``ModelSpec.files`` for the file in ``folder``; empty if an older version wrote none."""
    path = folder / TRAINED_ON
    return {TRAINED_ON: hashlib.sha256(path.read_bytes()).hexdigest()} if path.is_file() else {}


def knows_trained_on(folder: Path) -> bool:
    """Whether the model in ``folder`` knows its training photographs; models of earlier versions do not."""
    return TRAINED_ON in read_spec(folder).files


def trained_on(folder: Path) -> frozenset[bytes]:
    """Digests of all photographs that the weights in ``folder`` have seen, or will see in a run without a model yet.

    Raises BrokenModel if the file is missing or does not match ``model.json``.
    """
    if (folder / SPEC).is_file():
        data = verified(folder, TRAINED_ON, read_spec(folder).files[TRAINED_ON])
    else:
        data = (folder / TRAINED_ON).read_bytes()
    return frozenset(data[start : start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES))


def not_trained_on(photographs: Photographs, folder: Path) -> tuple[Photographs, int]:
    """The ``photographs`` that the model in ``folder`` was not trained on, each once, and the number of the others.

    Copies are no further evidence; ``skipped`` counts them.
    """
    known = trained_on(folder)
    fresh: dict[bytes | Path, int] = {}
    contents = digests(photographs.paths)
    for index, (path, digest) in enumerate(zip(photographs.paths, contents, strict=True)):
        if digest not in known:
            fresh.setdefault(digest or path, index)
    seen = sum(digest in known for digest in contents)
    copies = len(photographs) - seen - len(fresh)
    skipped = (*photographs.skipped, *([("copy of another", copies)] if copies else []))
    return replace(photographs.subset(list(fresh.values())), skipped=skipped), seen


def merge_trained_on(folder: Path, sources: Iterable[Path]) -> dict[str, str]:
    """Store in ``folder`` the digests of all models in ``sources``; as ``write_trained_on``."""
    return write_trained_on(folder, frozenset[bytes]().union(*map(trained_on, sources)))
