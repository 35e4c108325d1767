"""From held-out photographs to temperatures, a default threshold and certified tables."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from service.errors import BrokenModel, DataError, InvalidOption, NotFound
from service.evaluation.calibrate import TEMPERATURES, calibrate, cheapest, fit, fit_temperature
from service.evaluation.passes import Passes, run_passes
from service.evaluation.publish import publish
from service.inference.calibration import THRESHOLDS
from service.inference.predictor import Predictor
from service.inference.runtimes import available
from service.model_spec import ModelSpec
from service.stages import Temperature
from service.store import ModelStore, read_spec, read_weights, write_spec, write_weights
from service.training.data import find, halve, hold_out
from service.training.loop import train
from service.training.options import TrainOptions


def _change(run: Path, **changed: object) -> ModelSpec:
    spec = dataclasses.replace(read_spec(run), **changed)  # type: ignore[arg-type]
    write_spec(run, spec)
    return spec


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_fitting_recovers_the_temperature_that_answers_were_drawn_with(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20_000, 10) * 3
    targets = torch.multinomial((logits / temperature).softmax(1), 1).squeeze(1)
    assert fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 1e3, 1e6])
def test_temperature_is_bounded_when_everything_is_right_or_wrong(scale: float) -> None:
    targets = torch.arange(30) % 3
    logits = one_hot(targets, 3).float() * scale
    for truth in (targets, (targets + 1) % 3):
        assert TEMPERATURES[0] <= fit_temperature(logits, truth) <= TEMPERATURES[1]


def _passes(low: list[float], low_right: list[bool], high_right: list[bool]) -> Passes:
    """Images of two classes with these confidences of the low pass."""
    targets = torch.zeros(len(low), dtype=torch.int64)

    def logits(confidence: Tensor, right: list[bool]) -> Tensor:
        margin = torch.log(confidence / (1 - confidence))
        margin = torch.where(torch.tensor(right), margin, -margin)
        return torch.stack([margin, torch.zeros(len(low))], dim=1)

    return Passes(logits(torch.tensor(low), low_right), logits(torch.full((len(low),), 0.9), high_right), targets)


def test_default_is_the_lowest_threshold_that_loses_one_right_answer_in_two_hundred() -> None:
    wrong = [0.605, 0.805, 0.905]
    passes = _passes([*wrong, *[0.955] * 397], [False] * 3 + [True] * 397, [True] * 3 + [False] * 10 + [True] * 387)
    assert cheapest(passes, Temperature()) == 0.61  # below it a third one is lost, whatever ten others win


def test_default_lets_everything_exit_when_the_low_pass_is_as_good() -> None:
    assert cheapest(_passes([0.6] * 10, [True] * 10, [True] * 10), Temperature()) == 0


def test_temperature_moves_the_default() -> None:
    passes = _passes([0.6] * 5 + [0.99] * 5, [False] * 5 + [True] * 5, [True] * 10)
    assert cheapest(passes, Temperature()) == pytest.approx(0.6, abs=0.011)
    assert cheapest(passes, Temperature(low=0.25)) > 0.8


def test_calibrating_writes_temperatures_a_default_and_a_table_for_each_precision(run: Path, shapes: Path) -> None:
    before = read_spec(run)
    seen: list[tuple[int, int]] = []
    spec = calibrate(run, shapes, "cpu", workers=0, on_batch=lambda done, total: seen.append((done, total)))
    assert read_spec(run) == spec
    assert spec.default_threshold in THRESHOLDS
    assert all(TEMPERATURES[0] <= t <= TEMPERATURES[1] for t in (spec.temperature.low, spec.temperature.high))
    pairs = available(torch.device("cpu"), before)
    assert pairs[0] == ("eager", "float32")
    assert [(table.runtime, table.precision) for table in spec.calibration] == pairs
    assert all(table.default_threshold in THRESHOLDS for table in spec.calibration)
    assert sum(done for done, _ in seen) == seen[-1][1] == (11 + 10) * len(pairs)
    untouched = dataclasses.replace(spec, temperature=Temperature(), default_threshold=None, calibration=())
    assert untouched == before


def test_one_half_fits_and_the_other_certifies(calibrated: Path, shapes: Path) -> None:
    spec = read_spec(calibrated)
    _, held_out = hold_out(find(shapes, "train"), spec.recipe["calibration_share"], spec.recipe["seed"])
    fitting, certifying = halve(held_out)
    predictor = Predictor.load(calibrated, "cpu", "float32")
    fit_on = run_passes(predictor, fitting, workers=0)
    assert fit(fit_on) == spec.temperature
    assert cheapest(fit_on, spec.temperature) == spec.default_threshold
    passes = run_passes(predictor, certifying, workers=0)
    table = spec.calibration[0]
    assert table.n == len(passes) == 10
    answers = passes.answers(spec.temperature)
    row = next(row for row in table.rows if row.threshold == spec.default_threshold)
    exited = answers.confidence > row.threshold
    right = np.where(exited, answers.low, answers.high) == answers.targets
    assert (row.exited, row.right) == (exited.sum(), right.sum())


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_no_photograph_is_trained_on_fitted_on_and_certified_with(shapes: Path, share: float) -> None:
    found = find(shapes, "train")
    rest, held_out = hold_out(found, share, seed=3)
    parts = [set(part.paths) for part in (rest, *halve(held_out))]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(found)


def test_what_certifies_moves_neither_temperature_nor_default(
    trained: Path, calibrated: Path, shapes: Path, tmp_path: Path
) -> None:
    spec = read_spec(trained)
    other = Path(shutil.copytree(shapes, tmp_path / "other"))
    _, certifying = halve(hold_out(find(other, "train"), spec.recipe["calibration_share"], spec.recipe["seed"])[1])
    for path in certifying.paths:  # as if each showed something else
        shutil.copy(other / "val" / "circle" / "00.jpg", path)
    again, before = Path(shutil.copytree(trained, tmp_path / "run")), read_spec(calibrated)
    after = calibrate(again, other, "cpu", workers=0)
    assert (after.temperature, after.default_threshold) == (before.temperature, before.default_threshold)
    assert [t.default_threshold for t in after.calibration] == [t.default_threshold for t in before.calibration]
    assert all(new.rows != old.rows for new, old in zip(after.calibration, before.calibration, strict=True))


def test_held_out_photographs_are_those_that_training_left_out(trained: Path, shapes: Path) -> None:
    spec = read_spec(trained)
    rest, held_out = hold_out(find(shapes, "train"), spec.recipe["calibration_share"], spec.recipe["seed"])
    assert (len(rest), len(held_out)) == (spec.training["train_images"], spec.training["calibration_images"])


def test_calibrating_twice_gives_the_same(calibrated: Path, shapes: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(calibrated, tmp_path / "run"))
    assert calibrate(again, shapes, "cpu", workers=0) == read_spec(calibrated)


def test_tables_of_another_device_are_kept_unless_temperatures_have_changed(
    run: Path, calibrated: Path, shapes: Path
) -> None:
    before = read_spec(calibrated)
    foreign = dataclasses.replace(before.calibration[0], runtime="cudagraphs", precision="float16")
    both = _change(run, temperature=before.temperature, calibration=(*before.calibration, foreign)).calibration
    assert sorted(map(repr, calibrate(run, shapes, "cpu", workers=0).calibration)) == sorted(map(repr, both))
    _change(run, temperature=Temperature(9.0, 9.0))
    assert calibrate(run, shapes, "cpu", workers=0).calibration == before.calibration


def test_photographs_added_since_training_are_an_error(run: Path, shapes: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    shutil.copytree(shapes, more)
    shutil.copy(more / "val" / "circle" / "00.jpg", more / "train" / "circle" / "new.jpg")
    with pytest.raises(DataError, match="has 73 training photographs and had 72 when the model was trained"):
        calibrate(run, more, "cpu", workers=0)


@pytest.mark.parametrize(("share", "held_out"), [(0, 0), (0.1, 6)])
def test_too_few_held_out_photographs_are_an_error(run: Path, shapes: Path, share: float, held_out: int) -> None:
    _change(run, recipe={**read_spec(run).recipe, "calibration_share": share})
    with pytest.raises(DataError, match=f"{held_out} photographs were held out of training; .* at least 20"):
        calibrate(run, shapes, "cpu", workers=0)


def test_run_of_another_version_is_named_with_what_it_does_not_say(run: Path, shapes: Path) -> None:
    _change(run, recipe={"seed": 0}, code_version="0.0.7")
    with pytest.raises(DataError, match=r"of run run, which lowfirst 0\.0\.7 wrote, says .* 'calibration_share'"):
        calibrate(run, shapes, "cpu", workers=0)


def test_other_classes_are_named(run: Path, shapes: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(shapes, other)
    (other / "train" / "circle").rename(other / "train" / "disc")
    with pytest.raises(DataError, match="not in both: circle, disc"):
        calibrate(run, other, "cpu", workers=0)


def test_single_scale_network_has_nothing_to_calibrate(shapes: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        "mobilenet_v1_025", shapes, tmp_path / "run", 64, epochs=1, batch_size=16,
        calibration_share=0.3, device="cpu", precision="float32", workers=0,
    )  # fmt: skip
    train(options)
    said = "run is a run of mobilenet_v1_025, which is single-scale: it has no exit to calibrate or to serve"
    with pytest.raises(DataError, match=said):
        calibrate(options.out, shapes, "cpu", workers=0)
    with pytest.raises(DataError, match=said):
        publish(options.out, ModelStore(tmp_path / "store"), "single")


def test_network_that_diverged_is_not_calibrated(run: Path, shapes: Path) -> None:
    weights = read_weights(run, read_spec(run))
    weights["low.classifier.bias"][0] = math.nan
    _change(run, weights_sha256=write_weights(run, weights))
    with pytest.raises(BrokenModel, match="answers 11 of 11 photographs with numbers that are not finite"):
        calibrate(run, shapes, "cpu", workers=0)
    assert read_spec(run).calibration == ()


def test_folder_without_a_run_is_not_found(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"has no model\.json"):
        calibrate(tmp_path, shapes)


def test_unknown_device_is_named(run: Path, shapes: Path) -> None:
    with pytest.raises(InvalidOption, match="device is 'abacus'"):
        calibrate(run, shapes, "abacus")
