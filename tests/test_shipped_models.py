"""The models in the store, and the pictures that stand in for photographs."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from service.calibration.exit_rule import confidence, exits, probabilities
from service.evaluation.evaluate import summarise
from service.evaluation.passes import run_passes
from service.images.decode import decode
from service.inference.predictor import Predictor
from service.settings import SHIPPED_MODEL, SHIPPED_STORE
from service.store import ModelStore, read_spec
from tests import shipped_logits

EXAMPLES = Path(__file__).parent / "examples"
PICTURES = sorted(EXAMPLES.glob("*.jpg"))
STORE = ModelStore(SHIPPED_STORE)
FOLDER = STORE.find(SHIPPED_MODEL)
# Top-1 at the default threshold that a new version of a model has to keep.
ACCURACY = {"imagenette-mobilenet": 0.89, "imagenette-mobilenet-025": 0.85, "imagenette-resnet18": 0.92}
SHIPPED = [f"{name}/{version}" for name in STORE.names() for version in STORE.versions(name)]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(FOLDER, "cpu", "float32")


def _run(predictor: Predictor, picture: Path) -> tuple[str, bool]:
    """(label, whether it exits) at the default threshold."""
    spec = predictor.spec
    assert spec.default_threshold is not None
    images = decode(picture.read_bytes(), spec.preprocessing).unsqueeze(0)
    first, last = predictor.answers_to(images)
    sure = confidence(probabilities(first, spec.temperatures[0])).item()
    exited = exits(sure, spec.default_threshold)
    return spec.classes[int((first if exited else last).argmax())], exited


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_every_example_is_labelled_right(predictor: Predictor, picture: Path) -> None:
    label, _ = _run(predictor, picture)
    assert label.replace(" ", "-") == picture.stem.rstrip("-0123456789")


def test_some_examples_exit_and_some_escalate(predictor: Predictor) -> None:
    exited = [_run(predictor, picture)[1] for picture in PICTURES]
    assert 0 < sum(exited) < len(exited)


def test_examples_are_what_the_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("draw", EXAMPLES / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    assert set(draw.EXAMPLES) == {picture.name for picture in PICTURES}
    name, (subject, seed) = next(iter(draw.EXAMPLES.items()))
    file = io.BytesIO()
    draw.draw(subject, seed).save(file, "JPEG", quality=88)
    drawn, kept = Image.open(file), Image.open(EXAMPLES / name)
    assert np.abs(np.asarray(drawn, dtype=int) - np.asarray(kept, dtype=int)).mean() < 1


def test_all_weights_together_stay_small_enough_for_a_repository() -> None:
    assert sum(path.stat().st_size for path in SHIPPED_STORE.rglob("*")) < 80_000_000


@pytest.mark.parametrize("reference", SHIPPED)
def test_spec_names_no_place(reference: str) -> None:
    assert not re.search(r"\"[^\"]*(/|\\\\)[^\"]*/", (SHIPPED_STORE / reference / "model.json").read_text())


@pytest.mark.parametrize("reference", SHIPPED)
def test_card_says_what_it_is_not_for(reference: str) -> None:
    assert "Any picture at all gets one of these labels" in (SHIPPED_STORE / reference / "README.md").read_text()


@pytest.mark.parametrize("reference", SHIPPED)
def test_kept_logits_give_what_the_card_says(reference: str) -> None:
    folder = SHIPPED_STORE / reference
    measured = summarise(shipped_logits.read(reference), Predictor.load(folder, "cpu", "float32"), "val")
    row = next(line for line in (folder / "README.md").read_text().splitlines() if "(default)" in line)
    exit_rate, _, _, accuracy = (float(cell) for cell in row.split("|")[2:6])
    two_images = 100 * 2 / measured.images
    assert measured.images == 3925
    assert abs(100 * measured.default.accuracy - accuracy) <= two_images + 0.005
    assert abs(100 * measured.default.exit_rate - exit_rate) <= two_images + 0.05
    assert read_spec(folder).default_threshold == measured.default.threshold
    assert measured.default.accuracy >= ACCURACY[reference.partition("/")[0]]


EVERY = 8


@pytest.mark.timeout(300)  # 490 photographs, every stage: a bound on a hang, not on the speed
@pytest.mark.parametrize("reference", SHIPPED)
def test_validation_photographs_give_the_kept_logits(reference: str, imagenette: Path) -> None:
    kept, photographs = shipped_logits.read(reference), shipped_logits.photographs(imagenette)
    some = range(0, len(photographs), EVERY)
    assert len(kept) == len(photographs)
    found = run_passes(Predictor.load(SHIPPED_STORE / reference, "cpu", "float32"), photographs.subset(some))
    assert not found.unreadable
    assert torch.equal(found.targets, kept.targets[list(some)])
    for now, then in zip(found.logits, kept.logits, strict=True):
        torch.testing.assert_close(now, then[list(some)], rtol=0, atol=1e-3)  # processors sum in other orders
