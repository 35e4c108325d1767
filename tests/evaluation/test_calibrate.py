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

from service.calibration.certify import THRESHOLDS
from service.errors import BrokenModel, DataError, InvalidOption, NotFound
from service.evaluation.calibrate import TEMPERATURES, calibrate, cheapest, fit, fit_temperature, photographs_for
from service.evaluation.evaluate import evaluate, seen_in_training
from service.evaluation.passes import Passes, run_passes
from service.evaluation.publish import publish
from service.images.transforms import Preprocessing
from service.inference.predictor import Predictor
from service.inference.runtimes import available
from service.model_spec import Architecture, ModelSpec
from service.stages import StageSpec
from service.store import ModelStore, read_spec, read_weights, write_spec, write_weights
from service.training.data import Photographs, find, hold_out, split_in_halves
from service.training.loop import train
from service.training.options import TrainOptions
from service.training.trained_on import TRAINED_ON


def _spec(*temperatures: float) -> ModelSpec:
    """Of a model of two stages with these temperatures."""
    stages = StageSpec("low", 32, 1), StageSpec("high", 64, 4)
    spec = ModelSpec(
        "run", 0, Architecture("ms_mobilenet_v1_025", 2), ("a", "b"), ("a", "b"), Preprocessing.at(64), stages, ""
    )
    return spec.with_temperatures(temperatures or (1.0, 1.0))


def _change(run: Path, **changed: object) -> ModelSpec:
    spec = dataclasses.replace(read_spec(run), **changed)  # type: ignore[arg-type]
    write_spec(run, spec)
    return spec


def _forget(run: Path) -> None:
    """Make it a run of an earlier version, which kept no contents."""
    (run / TRAINED_ON).unlink()
    _change(run, files={})


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

    both = logits(torch.tensor(low), low_right), logits(torch.full((len(low),), 0.9), high_right)
    return Passes(both, targets)


def test_default_is_the_lowest_threshold_that_loses_one_right_answer_in_two_hundred() -> None:
    wrong = [0.605, 0.805, 0.905]
    passes = _passes([*wrong, *[0.955] * 397], [False] * 3 + [True] * 397, [True] * 3 + [False] * 10 + [True] * 387)
    assert cheapest(passes, _spec()) == 0.61  # below it a third one is lost, whatever ten others win


def test_default_lets_everything_exit_when_the_low_pass_is_as_good() -> None:
    assert cheapest(_passes([0.6] * 10, [True] * 10, [True] * 10), _spec()) == 0


def test_temperature_moves_the_default() -> None:
    passes = _passes([0.6] * 5 + [0.99] * 5, [False] * 5 + [True] * 5, [True] * 10)
    assert cheapest(passes, _spec()) == pytest.approx(0.6, abs=0.011)
    assert cheapest(passes, _spec(0.25, 1.0)) > 0.8


def test_calibrating_writes_temperatures_a_default_and_a_table_for_each_precision(run: Path, shapes: Path) -> None:
    before = read_spec(run)
    seen: list[tuple[int, int]] = []
    spec = calibrate(run, shapes, device="cpu", workers=0, on_batch=lambda done, total: seen.append((done, total)))
    assert read_spec(run) == spec
    assert spec.default_threshold in THRESHOLDS
    assert all(TEMPERATURES[0] <= t <= TEMPERATURES[1] for t in spec.temperatures)
    pairs = available(torch.device("cpu"), before)
    assert pairs[0] == ("eager", "float32")
    assert [(table.runtime, table.precision) for table in spec.calibration] == pairs
    assert all(table.default_threshold in THRESHOLDS for table in spec.calibration)
    assert sum(done for done, _ in seen) == seen[-1][1] == (11 + 10) * len(pairs)
    untouched = dataclasses.replace(spec, default_threshold=None, calibration=())
    assert untouched.with_temperatures((1.0, 1.0)) == before


def test_one_half_fits_and_the_other_certifies(calibrated: Path, shapes: Path) -> None:
    spec = read_spec(calibrated)
    _, held_out = hold_out(find(shapes, "train"), spec.recipe["calibration_share"], spec.recipe["seed"])
    fitting, certifying = split_in_halves(held_out)
    predictor = Predictor.load(calibrated, "cpu", "float32")
    fit_on = run_passes(predictor, fitting, workers=0)
    assert fit(fit_on) == spec.temperatures
    assert cheapest(fit_on, spec) == spec.default_threshold
    passes = run_passes(predictor, certifying, workers=0)
    table = spec.calibration[0]
    assert table.n == len(passes) == 10
    answers = passes.answers(spec.temperatures)
    row = next(row for row in table.rows if row.threshold == spec.default_threshold)
    exited = answers.confidence[:, 0] > row.threshold
    right = np.where(exited, answers.answers[:, 0], answers.last) == answers.targets
    assert (row.exited, row.right) == (exited.sum(), right.sum())


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_no_photograph_is_trained_on_fitted_on_and_certified_with(shapes: Path, share: float) -> None:
    found = find(shapes, "train")
    rest, held_out = hold_out(found, share, seed=3)
    parts = [set(part.paths) for part in (rest, *split_in_halves(held_out))]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(found)


def test_what_certifies_moves_neither_temperature_nor_default(
    trained: Path, calibrated: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def certifying_others(photographs: Photographs) -> tuple[Photographs, Photographs]:
        fitting, certifying = split_in_halves(photographs)
        wrong = tuple((target + 1) % 3 for target in certifying.targets)  # as if each showed something else
        return fitting, dataclasses.replace(certifying, targets=wrong)

    monkeypatch.setattr("service.evaluation.calibrate.split_in_halves", certifying_others)
    again, before = Path(shutil.copytree(trained, tmp_path / "run")), read_spec(calibrated)
    after = calibrate(again, shapes, device="cpu", workers=0)
    assert (after.temperatures, after.default_threshold) == (before.temperatures, before.default_threshold)
    assert [t.default_threshold for t in after.calibration] == [t.default_threshold for t in before.calibration]
    assert all(new.rows != old.rows for new, old in zip(after.calibration, before.calibration, strict=True))


def test_held_out_photographs_are_those_that_training_left_out(trained: Path, shapes: Path) -> None:
    spec = read_spec(trained)
    rest, held_out = hold_out(find(shapes, "train"), spec.recipe["calibration_share"], spec.recipe["seed"])
    assert (len(rest), len(held_out)) == (spec.training["train_images"], spec.training["calibration_images"])


def test_calibrating_twice_gives_the_same(calibrated: Path, shapes: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(calibrated, tmp_path / "run"))
    assert calibrate(again, shapes, device="cpu", workers=0) == read_spec(calibrated)


def test_tables_of_another_device_are_kept_unless_temperatures_have_changed(
    run: Path, calibrated: Path, shapes: Path
) -> None:
    before = read_spec(calibrated)
    foreign = dataclasses.replace(before.calibration[0], runtime="cudagraphs", precision="float16")
    both = _change(run, stages=before.stages, calibration=(*before.calibration, foreign)).calibration
    assert sorted(map(repr, calibrate(run, shapes, device="cpu", workers=0).calibration)) == sorted(map(repr, both))
    _change(run, stages=before.with_temperatures((9.0, 9.0)).stages)
    assert calibrate(run, shapes, device="cpu", workers=0).calibration == before.calibration


def test_photographs_added_since_training_are_an_error_where_none_is_known_by_its_contents(
    run: Path, shapes: Path, tmp_path: Path
) -> None:
    _forget(run)
    more = tmp_path / "more"
    shutil.copytree(shapes, more)
    shutil.copy(more / "val" / "circle" / "00.jpg", more / "train" / "circle" / "new.jpg")
    with pytest.raises(DataError, match="has 73 training photographs and had 72 when the model was trained"):
        calibrate(run, more, device="cpu", workers=0)


def test_what_was_trained_on_certifies_nothing_whatever_it_is_called(run: Path, shapes: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    for path in sorted((shapes / "train").glob("*/*.jpg")):
        target = renamed / "train" / path.parent.name / f"a-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    chosen = photographs_for(read_spec(run), run, renamed, None)
    before = photographs_for(read_spec(run), run, shapes, None)
    assert sorted(p.read_bytes() for p in chosen.paths) == sorted(p.read_bytes() for p in before.paths)


def test_another_split_is_calibrated_on_without_what_was_trained_on(run: Path, shapes: Path, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(shapes / "val", tmp_path / "data" / "mine")).parent
    for shape in ("circle", "square", "triangle"):
        for index in range(10):
            photograph = shapes / "train" / shape / f"{index:02}.jpg"
            shutil.copy(photograph, mixed / "mine" / shape / f"seen-{index}.jpg")
    fresh = photographs_for(read_spec(run), run, mixed, "mine")
    assert 18 <= len(fresh) < 48
    assert calibrate(run, mixed, "mine", device="cpu", workers=0).calibration[0].n == len(fresh) // 2


def test_photographs_that_were_trained_on_are_counted_before_a_model_is_measured(
    run: Path, shapes: Path, tmp_path: Path
) -> None:
    assert seen_in_training(run, shapes, "val") == 0
    data = Path(shutil.copytree(shapes / "train", tmp_path / "data" / "new")).parent
    held_out = photographs_for(read_spec(run), run, shapes, None)
    assert seen_in_training(run, data, "new") == len(list((shapes / "train").glob("*/*.jpg"))) - len(held_out)


def test_unlabelled_photographs_certify_agreement_alone(run: Path, shapes: Path, tmp_path: Path) -> None:
    for index, path in enumerate(sorted((shapes / "val").glob("*/*.jpg"))):
        for copy in range(2):
            target = tmp_path / "today" / f"{index}-{copy}.jpg"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes() + bytes([copy]))
    before = read_spec(run)
    spec = calibrate(run, tmp_path / "today", is_labelled=False, device="cpu", workers=0)
    assert spec.temperatures == before.temperatures
    assert not spec.calibration[0].is_labelled
    assert {row.right for row in spec.calibration[0].rows} == {None}
    with pytest.raises(DataError, match="holds the model's classes: leave out --unlabelled"):
        calibrate(run, shapes / "val", is_labelled=False, device="cpu", workers=0)


@pytest.mark.parametrize(("share", "held_out"), [(0, 0), (0.1, 6)])
def test_too_few_held_out_photographs_are_an_error(run: Path, shapes: Path, share: float, held_out: int) -> None:
    _forget(run)
    _change(run, recipe={**read_spec(run).recipe, "calibration_share": share})
    with pytest.raises(DataError, match=f"{held_out} photographs that were held out of training; .* at least 20"):
        calibrate(run, shapes, device="cpu", workers=0)


def test_run_of_another_version_is_named_with_what_it_does_not_say(run: Path, shapes: Path) -> None:
    _forget(run)
    _change(run, recipe={"seed": 0}, code_version="0.0.7")
    with pytest.raises(DataError, match=r"of run run, which lowfirst 0\.0\.7 wrote, lacks 'calibration_share'"):
        calibrate(run, shapes, device="cpu", workers=0)


def test_other_classes_are_named(run: Path, shapes: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(shapes, other)
    (other / "train" / "circle").rename(other / "train" / "disc")
    with pytest.raises(DataError, match="not in both: circle, disc"):
        calibrate(run, other, device="cpu", workers=0)


@pytest.mark.parametrize(("network", "stages"), [("mobilenet_v1_025", 1), ("ms3_mobilenet_v1_025", 3)])
def test_networks_of_other_depths_are_trained_calibrated_and_published(
    shapes: Path, tmp_path: Path, network: str, stages: int
) -> None:
    options = TrainOptions(
        network, shapes, tmp_path / "run", 128, epochs=1, batch_size=16,
        calibration_share=0.3, device="cpu", precision="float32", workers=0,
    )  # fmt: skip
    train(options)
    spec = calibrate(options.out, shapes, device="cpu", workers=0)
    assert len(spec.stages) == stages
    assert all(sum(row.ends) == table.n for table in spec.calibration for row in table.rows)
    evaluate(Predictor.load(options.out, "cpu", "float32"), shapes, workers=0).write(options.out)
    assert publish(options.out, ModelStore(tmp_path / "store"), "mine").depth == stages


def test_network_that_diverged_is_not_calibrated(run: Path, shapes: Path) -> None:
    weights = read_weights(run, read_spec(run))
    weights["low.classifier.bias"][0] = math.nan
    _change(run, weights_sha256=write_weights(run, weights))
    with pytest.raises(BrokenModel, match="answers 11 of 11 photographs with outputs that are not finite"):
        calibrate(run, shapes, device="cpu", workers=0)
    assert read_spec(run).calibration == ()


def test_folder_without_a_run_is_not_found(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"has no model\.json"):
        calibrate(tmp_path, shapes)


def test_unknown_device_is_named(run: Path, shapes: Path) -> None:
    with pytest.raises(InvalidOption, match="device is 'abacus'"):
        calibrate(run, shapes, device="abacus")


def test_few_photographs_are_warned_of(run: Path, shapes: Path, caplog: pytest.LogCaptureFixture) -> None:
    calibrate(run, shapes, device="cpu", workers=0)
    assert "10 photographs certify: even if all stages agree on all of them, an agreement over 74.1 %" in caplog.text


def test_unfinished_run_is_warned_of(run: Path, shapes: Path, caplog: pytest.LogCaptureFixture) -> None:
    calibrate(run, shapes, device="cpu", workers=0)
    assert "epochs" not in caplog.text
    _change(run, training={**read_spec(run).training, "epochs_done": 3})
    calibrate(run, shapes, device="cpu", workers=0)
    assert "run run was trained for 3 of its 4 epochs: `lowfirst train … --resume` will change the model" in caplog.text


def test_list_of_what_was_trained_on_that_is_gone_lets_nothing_certify(run: Path, shapes: Path) -> None:
    (run / TRAINED_ON).unlink()
    with pytest.raises(BrokenModel, match=r"trained_on\.bin is missing"):
        calibrate(run, shapes, device="cpu", workers=0)
