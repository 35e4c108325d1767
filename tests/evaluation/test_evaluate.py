"""Accuracy, exit rate and cost of a model over thresholds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from service.calibration.certify import THRESHOLDS
from service.errors import DataError, NotFound
from service.evaluation.coverage import PROMISES
from service.evaluation.evaluate import EVALUATION, Evaluation, evaluate
from service.evaluation.passes import run_passes
from service.inference.predictor import Predictor
from service.model_spec import Architecture
from service.networks.registry import build
from service.stages import StageSpec
from service.store import read_spec, write_spec, write_weights
from service.training.data import find


@pytest.fixture(scope="module")
def predictor(calibrated: Path) -> Predictor:
    return Predictor.load(calibrated, "cpu", "float32")


@pytest.fixture(scope="module")
def evaluation(predictor: Predictor, shapes: Path) -> Evaluation:
    return evaluate(predictor, shapes, workers=0)


def test_points_at_0_and_1_are_the_two_passes(evaluation: Evaluation, predictor: Predictor) -> None:
    first, last = evaluation.curve[0], evaluation.curve[-1]
    spec = predictor.spec
    assert (first.threshold, first.exit_rate, first.accuracy) == (0, 1, evaluation.stages["low"])
    assert (last.threshold, last.exit_rate, last.accuracy) == (1, 0, evaluation.stages["high"])
    assert first.mean_mmacs == spec.mmacs[0]
    assert last.mean_mmacs == sum(spec.mmacs)


def test_curve_has_every_threshold_and_its_cost_follows_the_exit_rate(
    evaluation: Evaluation, predictor: Predictor
) -> None:
    assert tuple(point.threshold for point in evaluation.curve) == THRESHOLDS
    for point in evaluation.curve:
        expected = predictor.spec.mmacs[0] + (1 - point.exit_rate) * predictor.spec.mmacs[1]
        assert point.mean_mmacs == pytest.approx(expected)


def test_passes_are_counted_image_by_image(evaluation: Evaluation, predictor: Predictor, shapes: Path) -> None:
    passes = run_passes(predictor, find(shapes, "val"), workers=0)
    (low, high), targets = (each.argmax(1).numpy() for each in passes.logits), passes.targets.numpy()
    assert evaluation.images == len(targets) == 18
    assert evaluation.stages["low"] == pytest.approx((low == targets).mean())
    assert evaluation.agreement == pytest.approx((low == high).mean())


def test_default_point_is_at_the_models_default_threshold(evaluation: Evaluation, predictor: Predictor) -> None:
    assert evaluation.default.threshold == predictor.spec.default_threshold
    assert evaluation.default in evaluation.curve


def test_uncalibrated_model_is_measured_at_threshold_1(trained: Path, shapes: Path) -> None:
    assert evaluate(Predictor.load(trained, "cpu", "float32"), shapes, workers=0).default.threshold == 1


def test_json_has_the_default_and_the_curve(evaluation: Evaluation) -> None:
    raw = json.loads(evaluation.to_json())
    point = {"threshold", "accuracy", "exit_rate", "mean_mmacs"}
    assert set(raw["default"]) == point
    assert all(set(each) == point for each in raw["curve"])
    assert (raw["model"], raw["precision"], raw["split"], raw["unreadable"]) == ("run", "float32", "val", [])


def test_promises_of_the_table_are_held_against_the_images(evaluation: Evaluation) -> None:
    assert [(promise.goal, promise.value) for promise in evaluation.promises] == list(PROMISES)
    assert all("run (eager float32) has 10 (" in promise.why_not for promise in evaluation.promises)


def test_uncalibrated_model_promises_nothing(trained: Path, shapes: Path) -> None:
    assert evaluate(Predictor.load(trained, "cpu", "float32"), shapes, workers=0).promises == ()


def test_what_is_written_is_read_back(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.write(tmp_path)
    assert Evaluation.read(tmp_path) == evaluation


def test_missing_evaluation_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"has no evaluation\.json: run `lowfirst evaluate .* --data DIR` first"):
        Evaluation.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": 3}'])
def test_evaluation_that_cannot_be_read_says_what_to_run(tmp_path: Path, text: str) -> None:
    (tmp_path / EVALUATION).write_text(text)
    with pytest.raises(DataError, match=r"evaluation\.json cannot be read: run `lowfirst evaluate"):
        Evaluation.read(tmp_path)


def test_evaluation_belongs_to_its_weights_and_calibration(evaluation: Evaluation, calibrated: Path) -> None:
    spec = read_spec(calibrated)
    assert evaluation.is_of(spec)
    assert not evaluation.is_of(dataclasses.replace(spec, weights_sha256="0" * 64))
    assert not evaluation.is_of(dataclasses.replace(spec, default_threshold=0.123, calibration=()))
    assert not evaluation.is_of(spec.with_temperatures((9, *spec.temperatures[1:])))


@pytest.mark.parametrize("rename", [("circle", "disc"), ("circle", "zebra")])
def test_classes_that_are_not_the_models_are_named(
    predictor: Predictor, shapes: Path, tmp_path: Path, rename: tuple[str, str]
) -> None:
    shutil.copytree(shapes / "val", tmp_path / "val")
    (tmp_path / "val" / rename[0]).rename(tmp_path / "val" / rename[1])
    with pytest.raises(
        DataError,
        match=rf"val has 3 class folders and model\.json of run \S+ names 3; not in both: circle, {rename[1]}",
    ):
        evaluate(predictor, tmp_path, workers=0)


@pytest.mark.parametrize("is_empty", [False, True])
def test_val_without_a_class_is_evaluated_and_the_class_named(
    predictor: Predictor, shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_empty: bool
) -> None:
    shutil.copytree(shapes / "val", tmp_path / "val")
    shutil.rmtree(tmp_path / "val" / "circle")
    if is_empty:
        (tmp_path / "val" / "circle").mkdir()
    measured = evaluate(predictor, tmp_path, workers=0)
    assert "1 of 3 classes have no photograph here and are not evaluated: circle" in caplog.text
    whole = run_passes(predictor, find(shapes, "val"), workers=0)
    there = whole.targets != 0
    right = (whole.logits[-1].argmax(1) == whole.targets)[there]
    assert measured.images == 12
    assert measured.stages["high"] == pytest.approx(right.float().mean().item())


def test_missing_split_is_named(predictor: Predictor, shapes: Path) -> None:
    with pytest.raises(DataError, match="has no folder test/"):
        evaluate(predictor, shapes, "test", workers=0)


def test_unreadable_photographs_are_named_and_left_out(predictor: Predictor, shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes / "val", tmp_path / "val")
    (tmp_path / "val" / "circle" / "empty.jpg").touch()
    measured = evaluate(predictor, tmp_path, workers=0)
    assert measured.images == 18
    assert measured.unreadable == (str(tmp_path / "val" / "circle" / "empty.jpg"),)


def test_nothing_but_unreadable_photographs_is_an_error(predictor: Predictor, tmp_path: Path) -> None:
    for folder in predictor.spec.class_folders:
        (tmp_path / "val" / folder).mkdir(parents=True)
        (tmp_path / "val" / folder / "empty.jpg").touch()
    with pytest.raises(DataError, match="none of 3 photographs could be read"):
        evaluate(predictor, tmp_path, workers=0)


def test_single_scale_network_has_one_point(calibrated: Path, shapes: Path, tmp_path: Path) -> None:
    digest = write_weights(tmp_path, build("mobilenet_v1_025", 3).state_dict())
    spec = dataclasses.replace(
        read_spec(calibrated),
        architecture=Architecture("mobilenet_v1_025", 3), weights_sha256=digest, default_threshold=None, calibration=(),
        stages=(StageSpec("single", 64, 5.0),), files={},
    )  # fmt: skip
    write_spec(tmp_path, spec)
    measured = evaluate(Predictor.load(tmp_path, "cpu", "float32"), shapes, workers=0)
    assert [(p.threshold, p.exit_rate, p.mean_mmacs) for p in measured.curve] == [(1, 0, 5.0)]
    assert measured.stages == {"single": measured.default.accuracy}
