"""The logits of every stage of each shipped model on the validation photographs, kept.

    python -m tests.shipped_logits DIR [NAME/VERSION ...]

So that a card can be checked against all photographs, while only some of them are computed again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from service.evaluation.logits import read_passes, write_passes
from service.evaluation.passes import Passes, run_passes
from service.inference.predictor import Predictor
from service.settings import SHIPPED_STORE
from service.store import ModelStore, read_spec
from service.training.data import Photographs, find

FOLDER = Path(__file__).parents[1] / "docs" / "results" / "shipped"


def photographs(data: Path) -> Photographs:
    """Of the data set that the shipped models were trained for."""
    return find(data, "val")


def read(reference: str) -> Passes:
    """The kept logits of ``NAME/VERSION``."""
    passes = read_passes(_file(reference), read_spec(SHIPPED_STORE / reference).depth)
    assert passes is not None
    return passes


def write(reference: str, data: Path) -> None:
    """In float32: a confidence next to the threshold stays on its side."""
    write_passes(
        _file(reference), run_passes(Predictor.load(SHIPPED_STORE / reference, "cpu", "float32"), photographs(data))
    )


def _file(reference: str) -> Path:
    return FOLDER / f"{reference.replace('/', '-')}.npz"


if __name__ == "__main__":
    store = ModelStore(SHIPPED_STORE)
    shipped = [f"{name}/{version}" for name in store.names() for version in store.versions(name)]
    for reference in sys.argv[2:] or shipped:
        write(reference, Path(sys.argv[1]))
