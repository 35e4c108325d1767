"""A run trains, says everything about itself in its folder, and survives interruption and bad files."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from service.errors import DataError, InvalidOption
from service.images.decode import decode
from service.inference.predictor import Predictor
from service.store import read_spec
from service.training.loop import Progress, train
from service.training.options import TrainOptions
from service.training.run_folder import CHECKPOINT, EpochLog

MakeOptions = Callable[..., TrainOptions]

FILES = ["checkpoint.pt", "log.csv", "model.json", "options.json", "trained_on.bin", "weights.safetensors"]


def test_training_lowers_the_loss_and_fills_the_run_folder(make_options: MakeOptions) -> None:
    options = make_options(epochs=4, batch_size=6, learning_rate=0.005, min_scale=0.6)
    finished = train(options)
    assert finished.log[-1].loss < finished.log[0].loss
    assert sorted(path.name for path in options.out.iterdir()) == FILES
    with (options.out / "log.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["epoch"] for line in lines] == ["1", "2", "3", "4"]
    assert [float(line["loss"]) for line in lines] == [line.loss for line in finished.log]
    assert json.loads((options.out / "options.json").read_text()) == options.to_json()


def test_run_folder_says_what_the_model_is_and_how_it_was_trained(make_options: MakeOptions, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"circle": "a disc", "square": "a box", "triangle": "a hat"}))
    spec = train(make_options(epochs=1, class_names=names, dataset="Shapes")).spec
    assert read_spec(tmp_path / "run") == spec
    assert (spec.name, spec.version, spec.dataset) == ("run", 0, "Shapes")
    assert spec.classes == ("a disc", "a box", "a hat")
    assert spec.class_folders == ("circle", "square", "triangle")
    assert spec.preprocessing.crop == 64
    assert 0 < spec.mmacs[0] < spec.mmacs[1]
    assert spec.recipe["seed"] == 0
    assert (spec.training["train_images"], spec.training["calibration_images"]) == (51, 21)
    assert {"torch", "torchvision", "python", "seconds", "device", "precision"} <= set(spec.training)
    assert spec.default_threshold is None


def test_progress_counts_every_step(make_options: MakeOptions) -> None:
    seen: list[Progress] = []
    epochs: list[int] = []
    train(make_options(batch_size=16), on_step=seen.append, on_epoch=lambda line: epochs.append(line.epoch))
    assert [(p.epoch, p.step, p.steps) for p in seen] == [(epoch, step, 3) for epoch in (1, 2) for step in (1, 2, 3)]
    assert all(p.loss > 0 and p.images_per_second > 0 and p.seconds_left >= 0 for p in seen)
    assert seen[-1].seconds_left == pytest.approx(0)
    assert epochs == [1, 2]


@pytest.mark.parametrize("interrupted_in", [1, 2])
def test_interrupted_and_resumed_gives_the_weights_of_an_uninterrupted_run(
    make_options: MakeOptions, tmp_path: Path, interrupted_in: int
) -> None:
    whole = train(make_options(out=tmp_path / "whole"))

    def interrupt(now: Progress) -> None:
        if (now.epoch, now.step) == (interrupted_in, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_options(), on_step=interrupt)
    torch.manual_seed(123)
    resumed = train(make_options(), resume=True)
    assert resumed.spec.weights_sha256 == whole.spec.weights_sha256
    assert [line.loss for line in resumed.log] == [line.loss for line in whole.log]


@pytest.mark.parametrize("other", [{"seed": 1}, {"augment": True}, {"label_smoothing": 0.1}], ids=str)
def test_what_is_trained_otherwise_has_other_weights(
    make_options: MakeOptions, tmp_path: Path, other: dict[str, Any]
) -> None:
    first = train(make_options(out=tmp_path / "first", epochs=1)).spec
    second = train(make_options(out=tmp_path / "second", epochs=1, **other)).spec
    assert first.weights_sha256 != second.weights_sha256


@pytest.mark.parametrize(
    ("other", "warned"),
    [
        ({}, False),
        ({"calibration_share": 0.1}, False),  # a part of what was held out
        ({"calibration_share": 0.4}, True),
        ({"seed": 1}, True),
        ({"data": "more"}, True),  # one photograph more, of the first class, is split otherwise
    ],
    ids=str,
)
def test_starting_from_a_run_that_may_know_what_is_held_out_is_warned_of(
    make_options: MakeOptions,
    tmp_path: Path,
    shapes: Path,
    caplog: pytest.LogCaptureFixture,
    other: dict[str, Any],
    warned: bool,
) -> None:
    first = make_options(out=tmp_path / "first", epochs=1)
    train(first)
    if "data" in other:
        other = {"data": shutil.copytree(shapes, tmp_path / "more")}
        photograph = next((other["data"] / "train" / "circle").iterdir())
        shutil.copy(photograph, photograph.with_stem("another"))
    caplog.clear()
    train(make_options(out=tmp_path / "second", epochs=1, init=str(first.out), **other))
    said = [record.getMessage() for record in caplog.records if "held out now" in record.getMessage()]
    assert len(said) == warned
    assert all(f"{first.out} was trained on " in line for line in said)


def test_unreadable_photographs_are_named_and_counted(make_options: MakeOptions, spoilt: Path) -> None:
    finished = train(make_options(data=spoilt, batch_size=4))
    names = {Path(path).name for path in finished.unreadable}
    assert names == {"corrupt.jpg", "empty.jpg", "text.jpg"}
    assert finished.log[-1].unreadable == 3


def test_nothing_but_unreadable_photographs_is_an_error(make_options: MakeOptions, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(4):
            (tmp_path / "data" / name / f"{index}.jpg").touch()
    with pytest.raises(DataError, match="none of the 4 photographs of class 'a' can be read"):
        train(make_options(data=tmp_path / "data", calibration_share=0))


def test_photographs_that_vanish_while_training_end_it(make_options: MakeOptions, shapes: Path, tmp_path: Path) -> None:
    options = make_options(data=Path(shutil.copytree(shapes, tmp_path / "data")), decoded_gb=0, batch_size=4)
    with pytest.raises(DataError, match="photographs can no longer be read"):
        train(options, on_start=lambda summary: shutil.rmtree(options.data))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"data": Path("nowhere")}, DataError, "'nowhere', which is not a folder"),
        ({"batch_size": 64}, DataError, "has 51 training photographs; a step needs 64"),
        ({"class_names": Path("nowhere.json")}, DataError, r"nowhere\.json cannot be read"),
        ({"device": "abacus"}, InvalidOption, "device is 'abacus'"),
        ({"network_options": {"fusion": "sideways"}}, InvalidOption, "fusion is 'sideways'"),
        ({"network_options": {"depth": 3}}, InvalidOption, "options that ms_mobilenet_v1_025 has"),
        ({"init": "torchvision"}, InvalidOption, "torchvision has no mobilenet_v1_025"),
    ],
)
def test_what_cannot_be_trained_leaves_no_run_folder(
    make_options: MakeOptions, changed: dict[str, object], error: type[Exception], message: str
) -> None:
    options = make_options(**changed)
    with pytest.raises(error, match=message):
        train(options)
    assert not options.out.exists()


def test_single_scale_network_trains_too(make_options: MakeOptions) -> None:
    options = make_options(network="mobilenet_v1_025", epochs=1)
    finished = train(options)
    (line,) = finished.log
    assert 0 <= line.held_out["single"] <= 1
    assert math.isnan(line.columns()["held_out_low_accuracy"])  # the columns that logs have always had
    assert line.columns()["held_out_high_accuracy"] == line.held_out["single"]
    assert EpochLog.of_columns(line.columns(), ("single",)) == line
    assert Predictor.load(options.out, "cpu", "float32").depth == 1


def test_three_scales_train_and_log_each(make_options: MakeOptions) -> None:
    options = make_options(network="ms3_mobilenet_v1_025", resolution=128, epochs=1)
    (line,) = train(options).log
    assert list(line.accuracy) == list(line.held_out) == ["low", "middle", "high"]
    assert EpochLog.of_columns(line.columns(), ("low", "middle", "high")) == line
    assert Predictor.load(options.out, "cpu", "float32").spec.resolutions == (32, 64, 128)


def test_fusion_is_kept_with_the_model(make_options: MakeOptions) -> None:
    options = make_options(epochs=1, network_options={"fusion": "after_relu"})
    assert train(options).spec.architecture.options == {"fusion": "after_relu"}
    assert Predictor.load(options.out, "cpu", "float32").depth == 2


def test_nothing_held_out_is_allowed(make_options: MakeOptions) -> None:
    finished = train(make_options(epochs=1, calibration_share=0))
    assert math.isnan(finished.log[0].held_out["high"])
    assert finished.spec.training["calibration_images"] == 0


def test_training_that_diverges_ends_and_keeps_the_epochs_before(make_options: MakeOptions) -> None:
    options = make_options(epochs=2)

    def spoil(now: Progress) -> None:
        if now.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, on_step=spoil)
    saved = torch.load(options.out / CHECKPOINT, weights_only=True)
    saved["network"]["low.classifier.bias"][0] = math.nan
    torch.save(saved, options.out / CHECKPOINT)
    with pytest.raises(InvalidOption, match="it must be lower: the loss of epoch 2 is not finite"):
        train(options, resume=True)
    assert len(torch.load(options.out / CHECKPOINT, weights_only=True)["log"]) == 1


def test_bfloat16_trains(make_options: MakeOptions) -> None:
    finished = train(make_options(epochs=1, precision="bfloat16", batch_size=16))
    assert math.isfinite(finished.log[0].loss)
    assert finished.spec.training["precision"] == "bfloat16"


def test_weights_are_averaged_unless_that_is_switched_off(make_options: MakeOptions, tmp_path: Path) -> None:
    averaged = train(make_options(out=tmp_path / "averaged", batch_size=4, ema_epochs=1))
    last = train(make_options(out=tmp_path / "last", batch_size=4, ema_epochs=0))
    assert [line.loss for line in averaged.log] == [line.loss for line in last.log]
    assert averaged.spec.weights_sha256 != last.spec.weights_sha256


def test_trained_network_answers_from_its_run_folder(make_options: MakeOptions, shapes: Path) -> None:
    options = make_options(epochs=1)
    train(options)
    predictor = Predictor.load(options.out, "cpu", "float32")
    data = (shapes / "val" / "circle" / "00.jpg").read_bytes()
    images = decode(data, predictor.spec.preprocessing).unsqueeze(0)
    assert [logits.shape for logits in predictor.answers_to(images)] == [(1, 3)] * 2
