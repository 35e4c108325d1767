"""What a run folder refuses, and what resuming may and may not change."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from service.errors import BrokenModel, DataError, InvalidOption, NotFound
from service.evaluation.calibrate import calibrate
from service.store import read_spec
from service.training.loop import train
from service.training.options import TrainOptions
from service.training.run_folder import CHECKPOINT, LOG, OPTIONS, EpochLog

MakeOptions = Callable[..., TrainOptions]


@pytest.fixture(scope="session")
def finished_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """A run of one epoch; tests copy it."""
    options = TrainOptions(
        network="ms_mobilenet_v1_025",
        data=shapes,
        out=tmp_path_factory.mktemp("finished") / "run",
        resolution=64,
        epochs=1,
        batch_size=8,
        calibration_share=0.3,
        device="cpu",
        precision="float32",
        workers=0,
    )
    train(options)
    return options


@pytest.fixture
def run(finished_run: TrainOptions, tmp_path: Path) -> TrainOptions:
    """A copy of the finished run, and its options."""
    shutil.copytree(finished_run.out, tmp_path / "run")
    return dataclasses.replace(finished_run, out=tmp_path / "run")


def test_folder_with_a_run_is_refused(run: TrainOptions) -> None:
    before = read_spec(run.out)
    with pytest.raises(InvalidOption, match="a folder without a run") as caught:
        train(run)
    assert caught.value.field == "out"
    assert read_spec(run.out) == before


def test_folder_that_cannot_be_made_is_named(make_options: MakeOptions, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidOption, match=r"out is .*file/run'; it must be a folder that can be made"):
        train(make_options(out=tmp_path / "file" / "run"))


def test_resuming_nothing_is_an_error(make_options: MakeOptions) -> None:
    options = make_options()
    with pytest.raises(NotFound, match="holds no run to resume"):
        train(options, resume=True)
    assert not options.out.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 2}, "epochs is 2; it must be 1, as in the resumed run"),
        ({"learning_rate": 0.01}, "learning_rate is 0.01; it must be 0.06, as in"),
        ({"network": "ms_mobilenet_v1_050"}, "network is 'ms_mobilenet_v1_050'; it must be 'ms_mobilenet_v1_025'"),
        ({"network_options": {"fusion": "after_relu"}}, "network_options is {'fusion': 'after_relu'}; it must be {}"),
        ({"init": "torchvision"}, "init is 'torchvision'; it must be None"),
    ],
)
def test_resuming_with_another_option_names_it_and_both_values(
    run: TrainOptions, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidOption) as caught:
        train(dataclasses.replace(run, **changed), resume=True)  # type: ignore[arg-type]
    assert caught.value.message.startswith(message)


def test_resuming_may_change_places(run: TrainOptions, shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes, tmp_path / "moved")
    moved = dataclasses.replace(run, data=tmp_path / "moved", workers=1, dataset="Shapes, moved")
    assert train(moved, resume=True).spec.weights_sha256 == read_spec(run.out).weights_sha256


def test_resuming_with_other_photographs_is_an_error(run: TrainOptions, shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes, tmp_path / "fewer")
    (tmp_path / "fewer" / "train" / "circle" / "00.jpg").unlink()
    with pytest.raises(DataError, match="has 14 training photographs that were not used before"):
        train(dataclasses.replace(run, data=tmp_path / "fewer"), resume=True)


def test_resuming_a_finished_run_changes_nothing(run: TrainOptions) -> None:
    before = {path.name: path.read_bytes() for path in run.out.iterdir()}
    finished = train(run, resume=True)
    assert {path.name: path.read_bytes() for path in run.out.iterdir()} == before
    assert len(finished.log) == 1
    assert finished.spec == read_spec(run.out)


def test_resuming_a_finished_run_keeps_its_calibration(run: TrainOptions) -> None:
    calibrated = calibrate(run.out, run.data, device="cpu", workers=0)
    assert train(run, resume=True).spec == calibrated
    assert read_spec(run.out) == calibrated


@pytest.mark.parametrize("missing", ["weights.safetensors", "model.json"])
def test_resuming_writes_a_model_that_was_interrupted_in_its_writing(run: TrainOptions, missing: str) -> None:
    before = read_spec(run.out)
    (run.out / missing).unlink()
    train(run, resume=True)
    assert read_spec(run.out) == before
    assert (run.out / "weights.safetensors").is_file()


def test_resuming_before_the_first_epoch_ended_starts_again(run: TrainOptions) -> None:
    before = read_spec(run.out)
    for name in (CHECKPOINT, LOG, "model.json", "weights.safetensors"):
        (run.out / name).unlink()
    assert train(run, resume=True).spec.weights_sha256 == before.weights_sha256


def test_run_of_another_version_is_named_with_how_many_options_differ(run: TrainOptions) -> None:
    path = run.out / OPTIONS
    before = json.loads(path.read_text())
    del before["warmup"]
    path.write_text(json.dumps({**before, "heat": 1}))
    with pytest.raises(
        DataError, match=r"options\.json was written by another version .*: 2 options are .*'heat' first"
    ):
        train(run, resume=True)


def test_run_of_a_version_without_an_option_that_is_off_goes_on(run: TrainOptions) -> None:
    path = run.out / OPTIONS
    before = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in before.items() if name != "augment"}))
    assert len(train(run, resume=True).log) == run.epochs
    with pytest.raises(DataError, match=r"1 options are .*'augment' first"):
        train(dataclasses.replace(run, augment=True), resume=True)


@pytest.mark.parametrize("text", ["", "{", "3"])
def test_options_that_cannot_be_read_are_named(run: TrainOptions, text: str) -> None:
    (run.out / OPTIONS).write_text(text)
    with pytest.raises(DataError, match=r"options\.json cannot be read"):
        train(run, resume=True)


@pytest.mark.parametrize("kept", [0, 100, -1000])
def test_checkpoint_that_is_cut_short_is_named_with_its_size(run: TrainOptions, kept: int) -> None:
    path = run.out / CHECKPOINT
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BrokenModel, match=rf"checkpoint\.pt, {path.stat().st_size} bytes, is not a usable checkpoint"):
        train(run, resume=True)


def test_checkpoint_with_a_flipped_bit_is_named(run: TrainOptions) -> None:
    path = run.out / CHECKPOINT
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BrokenModel, match=r"checkpoint\.pt, \d+ bytes, is not a usable checkpoint: \S+ .*damaged"):
        train(run, resume=True)


def _without(saved: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in saved.items() if name != key}


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: _without(saved, "average"),
        lambda saved: {**saved, "log": [_without(line, "loss") for line in saved["log"]]},
        lambda saved: {**saved, "log": [{**line, "mood": 1} for line in saved["log"]]},
    ],
)
def test_checkpoint_of_another_version_is_named(
    run: TrainOptions, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    path = run.out / CHECKPOINT
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(BrokenModel, match=r"checkpoint\.pt, \d+ bytes, .*: another version of lowfirst wrote it"):
        train(run, resume=True)


def test_broken_model_in_a_resumed_run_is_named(run: TrainOptions) -> None:
    (run.out / "model.json").write_text("{")
    with pytest.raises(BrokenModel, match=r"model\.json cannot be read"):
        train(run, resume=True)


def test_line_that_an_earlier_version_wrote_is_read_and_written_as_it_was() -> None:
    line = {
        "epoch": 1, "resolution": 64, "learning_rate": 0.1, "loss": 2.0, "low_accuracy": 0.2, "high_accuracy": 0.3,
        "held_out_low_accuracy": 0.4, "held_out_high_accuracy": 0.5, "images_per_second": 9.0, "seconds": 1.0,
        "waited": 0.0, "unreadable": 0,
    }  # fmt: skip
    known = EpochLog.of_columns(line, ("low", "high"))
    assert known.accuracy == {"low": 0.2, "high": 0.3}
    assert known.held_out == {"low": 0.4, "high": 0.5}
    assert list(known.columns().items()) == list(line.items())
    assert EpochLog.of_columns(line, ("single",)).accuracy == {"single": 0.3}


def test_options_are_readable_json(run: TrainOptions) -> None:
    assert json.loads((run.out / OPTIONS).read_text())["network"] == "ms_mobilenet_v1_025"
