"""From a calibrated, evaluated run to a version in the store, with a card that tells the truth."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.errors import BrokenModel, DataError, InvalidOption, NotFound
from service.evaluation.evaluate import EVALUATION, Evaluation, evaluate
from service.evaluation.publish import CARD, CARD_THRESHOLDS, CURVE, publish
from service.inference.predictor import Predictor
from service.store import WEIGHTS, ModelStore, read_spec, write_spec
from service.training.trained_on import TRAINED_ON


@pytest.fixture(scope="module")
def evaluated(calibrated: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = Path(shutil.copytree(calibrated, tmp_path_factory.mktemp("evaluated") / "run"))
    evaluate(Predictor.load(out, "cpu", "float32"), shapes, workers=0).write(out)
    return out


@pytest.fixture
def ready(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of a run that can be published."""
    return Path(shutil.copytree(evaluated, tmp_path / "ready"))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def test_published_model_is_the_runs_with_a_name_and_a_version(ready: Path, store: ModelStore) -> None:
    spec = publish(ready, store, "shapes")
    folder = store.find("shapes")
    assert folder == store.root / "shapes" / "1"
    assert sorted(path.name for path in folder.iterdir()) == [CARD, CURVE, "model.json", TRAINED_ON, WEIGHTS]
    assert read_spec(folder) == spec == dataclasses.replace(read_spec(ready), name="shapes", version=1)
    assert (folder / WEIGHTS).read_bytes() == (ready / WEIGHTS).read_bytes()
    assert Predictor.load(folder, "cpu", "float32").depth == 2


def test_every_publishing_makes_the_next_version(ready: Path, store: ModelStore) -> None:
    assert [publish(ready, store, "shapes").version for _ in range(3)] == [1, 2, 3]
    assert publish(ready, store, "others").version == 1
    (store.root / "shapes" / "9").mkdir()  # a publishing that was killed
    assert publish(ready, store, "shapes").version == 10


def test_card_has_a_row_for_each_threshold_as_measured(ready: Path, store: ModelStore) -> None:
    spec = publish(ready, store, "shapes")
    evaluation = Evaluation.read(ready)
    card = (store.find("shapes") / CARD).read_text()
    points = {p.threshold: p for p in evaluation.curve if p.threshold in CARD_THRESHOLDS}
    points[evaluation.default.threshold] = evaluation.default
    rows = re.findall(r"^\| ([\d.]+)( \(default\))? \| ([\d.]+) \| ([\d.]+) \| (\d+) \| ([\d.]+) \|$", card, re.M)
    assert [float(row[0]) for row in rows] == sorted(points)
    assert [float(row[0]) for row in rows if row[1]] == [spec.default_threshold]
    for threshold, _, exited, mmacs, _, accuracy in rows:
        point = points[float(threshold)]
        assert float(exited) == pytest.approx(100 * point.exit_rate, abs=0.051)
        assert float(mmacs) == pytest.approx(point.mean_mmacs, abs=0.051)
        assert float(accuracy) == pytest.approx(100 * point.accuracy, abs=0.0051)


def test_card_says_what_the_model_is_and_what_it_is_not_for(ready: Path, store: ModelStore) -> None:
    publish(ready, store, "shapes")
    card = " ".join((store.find("shapes") / CARD).read_text().split())
    for said in (
        "# shapes, version 1",
        "Any picture at all gets one of these labels.",
        "The model knows 3 classes: circle, square, triangle.",
        "scratch on Shapes",
        "18 photographs of `val/`",
        "51 photographs, 4 epochs,",
        "21 more photographs were held out for calibration",
        "The other half, 10 photographs, certifies",
        "lowfirst evaluate shapes/1 --data DIR --precision float32",
        "| learning_rate | 0.02 |",
        "| seed | 0 |",
        "![Top-1 against mean multiply-adds](curve.png)",
    ):
        assert said in card


def test_curve_is_a_picture(ready: Path, store: ModelStore) -> None:
    publish(ready, store, "shapes")
    with Image.open(store.find("shapes") / CURVE) as curve:
        assert curve.format == "PNG"
        assert min(curve.size) >= 400
        assert len(np.unique(np.asarray(curve))) > 5


def test_run_that_was_never_calibrated_is_refused(run: Path, store: ModelStore) -> None:
    with pytest.raises(DataError, match="has no default threshold: run `lowfirst calibrate"):
        publish(run, store, "shapes")
    assert not store.root.exists()


def test_run_that_was_never_evaluated_is_refused(calibrated: Path, store: ModelStore) -> None:
    with pytest.raises(NotFound, match=r"has no evaluation\.json"):
        publish(calibrated, store, "shapes")
    assert not store.root.exists()


def test_evaluation_before_the_calibration_is_refused(ready: Path, store: ModelStore) -> None:
    write_spec(ready, dataclasses.replace(read_spec(ready), default_threshold=0.4321, calibration=()))
    with pytest.raises(DataError, match="has changed since it was evaluated: run `lowfirst evaluate"):
        publish(ready, store, "shapes")
    assert not store.root.exists()


def test_evaluation_on_the_training_photographs_is_refused(ready: Path, store: ModelStore) -> None:
    dataclasses.replace(Evaluation.read(ready), split="train").write(ready)
    with pytest.raises(DataError, match="was evaluated on train/"):
        publish(ready, store, "shapes")


def test_weights_that_are_not_the_runs_are_refused(ready: Path, store: ModelStore) -> None:
    (ready / WEIGHTS).write_bytes(b"other")
    with pytest.raises(BrokenModel, match="has SHA-256"):
        publish(ready, store, "shapes")
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["../x", "Shapes", "", "a/b", ".hidden", "x" * 65])
def test_name_that_is_none_is_refused(ready: Path, store: ModelStore, name: str) -> None:
    with pytest.raises(InvalidOption, match="it must be a name of lower-case letters"):
        publish(ready, store, name)
    assert not store.root.exists()


def test_folder_without_a_run_is_not_found(tmp_path: Path, store: ModelStore) -> None:
    with pytest.raises(NotFound, match="holds no model"):
        publish(tmp_path, store, "shapes")


def test_failure_leaves_nothing_behind(ready: Path, store: ModelStore) -> None:
    raw = json.loads((ready / EVALUATION).read_text())
    raw["default"]["accuracy"] = 2  # no card can be written from this
    (ready / EVALUATION).write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="math domain error"):
        publish(ready, store, "shapes")
    assert store.names() == []
    assert not (store.root / "shapes").exists()
