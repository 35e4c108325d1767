"""One training over two processes gives one run folder; alone, nothing is asked of anybody."""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from service.errors import InvalidOption
from service.store import read_spec
from service.training.loop import Progress, train
from service.training.options import TrainOptions
from service.training.processes import Processes
from service.training.run_folder import CHECKPOINT

MakeOptions = Callable[..., TrainOptions]

TIMEOUT = 250  # a machine may be busy, and each process loads PyTorch
pytestmark = pytest.mark.timeout(2 * TIMEOUT)

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TRAIN = ("-m", "service.cli", "train", "ms_mobilenet_v1_025")
QUICK = ("--resolution", "64", "--device", "cpu", "--precision", "float32", "--workers", "0")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def _torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, *TRAIN, *QUICK, *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT)


def test_two_processes_train_into_one_run_folder(spoilt: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = _torchrun("--data", str(spoilt), "--out", str(out), "--batch-size", "4", "--epochs", "1")
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


LEARN = {"epochs": 14, "batch_size": 16, "learning_rate": 0.02, "ema_epochs": 0, "min_scale": 0.6, "seed": 1}
LEARNT = 0.6 * 3 * math.log(3)  # of what heads lose that know nothing: each, and the low one to the high one


@pytest.fixture
def learn(make_options: MakeOptions) -> tuple[TrainOptions, list[str]]:
    """Options that learn the shapes, for a call and for a command line."""
    options = make_options(**LEARN)
    named = [(f"--{name.replace('_', '-')}", str(value)) for name, value in LEARN.items()]
    places = ["--data", str(options.data), "--out", str(options.out), "--calibration-share", "0.3"]
    return options, places + [word for pair in named for word in pair]


def _losses(out: Path) -> list[float]:
    with (out / "log.csv").open(newline="") as file:
        return [float(line["loss"]) for line in csv.DictReader(file)]


def _first(epochs: int) -> Callable[[Progress], None]:
    def interrupt(now: Progress) -> None:
        if now.epoch > epochs:
            raise KeyboardInterrupt

    return interrupt


def _by_rank(options: TrainOptions, folder: Path) -> list[dict[str, Any]]:
    """What each of two processes noted at its end, see ``ranks``."""
    asked = folder / "options.pickle"
    asked.write_bytes(pickle.dumps(options))
    command = [*TORCHRUN, str(Path(__file__).with_name("ranks.py")), str(asked)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    return [json.loads((options.out / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_processes_wait_for_each_other_once_per_epoch_whatever_cannot_be_read(
    make_options: MakeOptions, spoilt: Path, tmp_path: Path
) -> None:
    for path in sorted((spoilt / "train" / "square").iterdir())[1:]:
        path.write_bytes(path.read_bytes()[:400])
    first, second = _by_rank(
        make_options(data=spoilt, batch_size=4), tmp_path
    )  # two each, of which many are unreadable
    assert first["weights"] == second["weights"]
    assert first["waited"] == second["waited"] == 2


def test_two_processes_learn_as_much_as_one_and_end_with_the_same_weights(
    make_options: MakeOptions, tmp_path: Path
) -> None:
    options = make_options(**LEARN)
    alone = train(replace(options, out=tmp_path / "alone"))
    first, second = _by_rank(options, tmp_path)
    assert first == second
    assert min(line.loss for line in alone.log) < LEARNT
    assert min(_losses(options.out)) < LEARNT


def test_one_process_goes_on_with_what_two_began_and_two_with_that(learn: tuple[TrainOptions, list[str]]) -> None:
    options, arguments = learn
    command = [*TORCHRUN, *TRAIN, *QUICK, *arguments]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as two:
        assert two.stdout
        next(line for line in two.stdout if line.startswith("epoch 2 "))  # it is written before it is said
        two.terminate()
    saved = torch.load(options.out / CHECKPOINT, weights_only=True)["log"]  # its log.csv may be an epoch ahead
    by_two = [line["loss"] for line in saved]
    with pytest.raises(KeyboardInterrupt):
        train(options, resume=True, on_step=_first(len(by_two) + 2))
    by_one = _losses(options.out)
    assert by_one[: len(by_two)] == by_two
    assert len(by_one) == len(by_two) + 2
    done = _torchrun(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert _losses(options.out)[: len(by_one)] == by_one
    assert len(_losses(options.out)) == options.epochs
    assert min(_losses(options.out)) < LEARNT
