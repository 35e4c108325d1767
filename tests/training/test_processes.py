"""One training over two processes gives one run folder; alone, nothing is asked of anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from service.errors import InvalidOption
from service.store import read_spec
from service.training.processes import Processes

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TRAIN = ("-m", "service.cli", "train", "ms_mobilenet_v1_025")
QUICK = ("--resolution", "64", "--epochs", "1", "--device", "cpu", "--precision", "float32", "--workers", "0")


def _torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*TORCHRUN, *TRAIN, *QUICK, *arguments], env=environment, capture_output=True, text=True, timeout=100
    )


def test_two_processes_train_into_one_run_folder(spoilt: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = _torchrun("--data", str(spoilt), "--out", str(out), "--batch-size", "4")
    assert done.returncode == 0, done.stderr
    spec = read_spec(out)
    assert spec.training["processes"] == 2
    assert len((out / "log.csv").read_text().splitlines()) == 2
    assert done.stdout.count("epoch 1 ") == done.stdout.count("trained ") == 1
    assert all(name in done.stderr for name in ("3 unreadable", "corrupt.jpg", "empty.jpg", "text.jpg"))


def test_alone_every_step_is_its_own() -> None:
    with Processes.join("cpu") as processes:
        assert (processes.rank, processes.world, processes.is_first) == (0, 1, True)
        assert processes.share(6, 1000) == 6
        assert (processes.share(None, 1000), processes.share(None, 55)) == (64, 6)
        assert processes.sum(torch.tensor([1, 2])).tolist() == [1, 2]
        assert processes.union({"a"}) == {"a"}
        processes.wait()


@pytest.mark.parametrize("batch_size", [5, 2])
def test_batch_that_cannot_be_shared_is_named(batch_size: int) -> None:
    with pytest.raises(InvalidOption, match="a multiple of the 2 processes, 2 or more for each"):
        Processes(rank=0, world=2).share(batch_size, 1000)
