"""Nothing that is read from a file runs code, wherever a file may be named: weights, ``--init``, a run to go on with.

Weights of a model in the store are tried in ``test_store.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.errors import BrokenModel
from service.networks.transplant import read
from service.training.run_folder import CHECKPOINT, RunFolder


class Payload:
    """What a pickle does when it is read: anything."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        """Make a file."""
        return Path.touch, (self.path,)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """Is there once the payload has run."""
    return tmp_path / "was-read"


def test_a_pickle_is_not_read_as_initial_weights(tmp_path: Path, proof: Path) -> None:
    torch.save({"weight": Payload(proof)}, tmp_path / "weights.pt")
    with pytest.raises(BrokenModel, match=r"weights\.pt"):
        read(tmp_path / "weights.pt")
    assert not proof.exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)  # it would have been
    assert proof.exists()


def test_a_pickle_is_not_read_as_a_checkpoint(tmp_path: Path, proof: Path) -> None:
    torch.save({"log": Payload(proof)}, tmp_path / CHECKPOINT)
    with pytest.raises(BrokenModel, match="not a usable checkpoint"):
        RunFolder(tmp_path).checkpoint(torch.device("cpu"), ("low", "high"))
    assert not proof.exists()
