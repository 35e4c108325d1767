"""A cascade of finished models: their stages one after another, their answers as they were."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from service.errors import BrokenModel, DataError, InvalidOption, NotFound
from service.evaluation.compose import Part, compose
from service.evaluation.logits import predictor_at
from service.evaluation.passes import Passes
from service.images.decode import decode
from service.images.sizes import in_sizes
from service.inference.predictor import Predictor
from service.model_spec import ModelSpec
from service.networks.cost import cost
from service.store import WEIGHTS, ModelStore, read_spec, write_spec
from tests.conftest import CLASSES, NETWORK, MakeJpeg, write_tiny

SINGLE = NETWORK.removeprefix("ms_")


@pytest.fixture
def store(cascades: Path, tmp_path: Path) -> ModelStore:
    """``single/1``, ``tiny/1`` and ``deep/1``, of one, two and three stages, all at 64 pixels."""
    return ModelStore(Path(shutil.copytree(cascades, tmp_path / "store")))


def _compose(store: ModelStore, *stages: str, name: str = "both") -> ModelSpec:
    parts = []
    for asked in stages:
        reference, _, pixels = asked.partition("@")
        parts.append(Part(asked, store.find(reference), int(pixels) if pixels else None))
    return compose(parts, store, name)


def _change(store: ModelStore, reference: str, **changed: object) -> None:
    folder = store.find(reference)
    write_spec(folder, dataclasses.replace(read_spec(folder), **changed))  # type: ignore[arg-type]


def test_one_model_at_two_sizes_is_a_cascade_whose_weights_are_stored_once(store: ModelStore) -> None:
    spec = _compose(store, "single@32", "single")
    folder = store.find("both")
    assert read_spec(folder) == spec
    assert [stage.name for stage in spec.stages] == ["single-32", "single-64"]
    assert spec.resolutions == (32, 64)
    assert spec.mmacs == tuple(cost(SINGLE, len(CLASSES), side)[0] for side in (32, 64))
    assert spec.architecture.options["order"] == [[0, 0], [0, 0]]
    once, twice = ((store.find(name) / WEIGHTS).stat().st_size for name in ("single", "both"))
    assert twice < 1.05 * once


@pytest.mark.parametrize(
    ("stages", "names", "order"),
    [
        (("single@32", "tiny@128"), ["single-32", "tiny-64", "tiny-128"], [[0, 0], [1, 0], [1, 1]]),
        (("tiny", "single@96"), ["tiny-32", "tiny-64", "single-96"], [[0, 0], [0, 1], [1, 0]]),
        (("tiny", "tiny@160"), ["tiny-32", "tiny-64", "tiny-80", "tiny-160"], [[0, 0], [0, 1], [0, 0], [0, 1]]),
        (("deep@128", "single@192"), ["deep-32", "deep-64", "deep-128", "single-192"], None),
        (("tiny@128",), ["tiny-64", "tiny-128"], [[0, 0], [0, 1]]),
    ],
)
def test_a_model_of_several_stages_brings_all_of_them(
    store: ModelStore, stages: tuple[str, ...], names: list[str], order: list[list[int]] | None
) -> None:
    spec = _compose(store, *stages)
    assert [stage.name for stage in spec.stages] == names
    assert order is None or spec.architecture.options["order"] == order
    assert spec.preprocessing.crop == max(spec.resolutions)


@pytest.mark.parametrize("stages", [("single@32", "single"), ("single@32", "tiny@128"), ("deep@128", "single@192")])
def test_every_stage_answers_as_its_model_does_by_itself(
    store: ModelStore, make_jpeg: MakeJpeg, stages: tuple[str, ...]
) -> None:
    spec = _compose(store, *stages)
    crops = torch.stack([decode(make_jpeg(seed, 300, 260), spec.preprocessing) for seed in range(4)])
    found = Predictor.load(store.find("both"), "cpu", "float32").answers_to(crops)
    expected = []
    for asked in stages:
        reference, _, pixels = asked.partition("@")
        folder = store.find(reference)
        alone = predictor_at(folder, read_spec(folder), int(pixels or 64), "cpu", "float32")
        expected += alone.answers(in_sizes(crops, alone.spec.resolutions))
    for logits, own in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, own)


@pytest.mark.usefixtures("openvino")
def test_composed_cascade_answers_alike_with_openvino(store: ModelStore, make_jpeg: MakeJpeg) -> None:
    spec = _compose(store, "single@32", "tiny@128")
    crops = torch.stack([decode(make_jpeg(seed, 300, 260), spec.preprocessing) for seed in range(4)])
    folder = store.find("both")
    eager, other = (
        Predictor.load(folder, "cpu", "float32", runtime).answers_to(crops) for runtime in ("eager", "openvino")
    )
    for logits, own in zip(eager, other, strict=True):
        torch.testing.assert_close(logits, own, rtol=1e-3, atol=1e-3)


def test_composing_a_composed_model_takes_its_stages(store: ModelStore) -> None:
    _compose(store, "single@32", "single@64")
    spec = _compose(store, "both", "tiny@192", name="more")
    assert [stage.name for stage in spec.stages] == ["both-32", "both-64", "tiny-96", "tiny-192"]
    assert [member["network"] for member in spec.architecture.options["members"]] == [SINGLE, NETWORK]
    assert Predictor.load(store.find("more"), "cpu", "float32").depth == 4


def test_names_are_made_unique(store: ModelStore, make_jpeg: MakeJpeg) -> None:
    write_tiny(store.root / "single" / "2", "mobilenet_v1_050", make_jpeg)
    names = [stage.name for stage in _compose(store, "single/1", "single/2").stages]
    assert names == ["single-64", "single-64-2"]


def test_names_of_run_folders_become_names_of_stages(store: ModelStore) -> None:
    _change(store, "single", name=f"_Meine Läufe {'x' * 60}")
    names = [stage.name for stage in _compose(store, "single@32", "single").stages]
    assert names == [stage.name for stage in read_spec(store.find("both")).stages]
    assert names[0].startswith("meine-l-ufe-xxx")
    assert names[0].endswith("x-32")


def test_each_stage_keeps_its_temperature_and_what_it_is_normalised_by(store: ModelStore) -> None:
    single = read_spec(store.find("single"))
    other = dataclasses.replace(single.preprocessing, resize=72, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5))
    _change(store, "single", preprocessing=other, stages=(dataclasses.replace(single.stages[0], temperature=2.5),))
    spec = _compose(store, "single@32", "tiny@128")
    assert spec.temperatures == (2.5, 1.0, 1.0)
    assert (spec.stages[0].mean, spec.stages[0].std) == (other.mean, other.std)
    assert [stage.mean for stage in spec.stages[1:]] == [None, None]
    assert spec.preprocessing.mean == read_spec(store.find("tiny")).preprocessing.mean
    spec = _compose(store, "tiny", "single@128")
    assert (spec.preprocessing.resize, spec.preprocessing.mean) == (144, other.mean)
    assert [stage.mean is None for stage in spec.stages] == [False, False, True]


def test_nothing_ends_early_before_it_is_calibrated(store: ModelStore) -> None:
    spec = _compose(store, "single@32", "single")
    assert (spec.default_threshold, spec.calibration) == (None, ())
    assert spec.start_threshold("eager", "float32") == 1


def test_every_composing_makes_the_next_version(store: ModelStore) -> None:
    assert [_compose(store, "single@32", "single").version for _ in range(2)] == [1, 2]
    assert _compose(store, "single@32", "single", name="single").version == 2


def test_card_names_models_and_costs(store: ModelStore) -> None:
    spec = _compose(store, "single@32", "tiny@128")
    card = (store.find("both") / "README.md").read_text()
    assert "single/1, tiny/1" in card
    assert "nothing is certified of it, until `lowfirst calibrate both/1 --data DIR`" in card
    for stage in spec.stages:
        assert f"| {stage.name} | {stage.resolution} | {stage.mmacs:.1f} |" in card


REFUSED = {
    "one stage": (("single",), r"stage is \['single'\]; it must be given at least twice"),
    "the same twice": (("single", "single"), "more expensive than the previous stage: single-64 takes"),
    "dearest first": (("tiny", "single@48"), "stage is 'single@48'; it must be more expensive than .* tiny-64"),
    "do not divide": (("single@32", "tiny@97"), r"divisible for all of its stages: 32 / 64 becomes 48\.5 / 97"),
    "three do not divide": (("deep@130", "single@160"), r"16 / 32 / 64 becomes 32\.5 / 65 / 130"),
    "too small": (("single@16", "single@64"), r"stage is 'single@16'; it must be at 32 to \d+ pixels"),
    "a stage too small": (("tiny@48", "single@64"), r"'tiny@48'; it must be at 32 to \d+ pixels .*: 24 / 48"),
    "too large": (("single@32", "single@100000"), "'single@100000'; it must be at 32 to"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_cascade_is_refused_and_leaves_nothing(store: ModelStore, case: str) -> None:
    stages, message = REFUSED[case]
    with pytest.raises(InvalidOption, match=message):
        _compose(store, *stages)
    assert "both" not in store.names()
    assert not (store.root / "both").exists()


def test_first_class_that_differs_is_named(store: ModelStore) -> None:
    _change(store, "tiny", class_folders=("ant", "bee", "cow", "dog"))
    with pytest.raises(DataError, match="the folder of class 2 is 'cat' in single@32 and 'cow' in tiny"):
        _compose(store, "single@32", "tiny")
    _change(store, "tiny", class_folders=CLASSES, classes=("ant", "wasp", "cat", "dog"))
    with pytest.raises(DataError, match="the label of class 1 is 'bee' in single@32 and 'wasp' in tiny"):
        _compose(store, "single@32", "tiny")
    assert not (store.root / "both").exists()


@pytest.mark.parametrize("name", ["../x", "Both", "", "a/b"])
def test_name_that_is_none_is_refused_before_anything_is_read(store: ModelStore, name: str) -> None:
    with pytest.raises(InvalidOption, match="it must be a name of lower-case letters"):
        compose([Part("nowhere", store.root / "nowhere")], store, name)


def test_unknown_and_broken_models_are_refused(store: ModelStore) -> None:
    with pytest.raises(NotFound, match="holds no model"):
        compose([Part("nowhere", store.root / "nowhere")], store, "both")
    (store.find("tiny") / WEIGHTS).write_bytes(b"other")
    with pytest.raises(BrokenModel, match="has SHA-256"):
        _compose(store, "single@32", "tiny@128")
    assert not (store.root / "both").exists()


def test_threshold_0_ends_everything_at_the_first_stage_and_1_nothing(store: ModelStore, make_jpeg: MakeJpeg) -> None:
    spec = _compose(store, "single@32", "tiny@128")
    crops = torch.stack([decode(make_jpeg(seed), spec.preprocessing) for seed in range(4)])
    logits = tuple(Predictor.load(store.find("both"), "cpu", "float32").answers_to(crops))
    answers = Passes(logits, torch.zeros(4, dtype=torch.int64)).answers(spec.temperatures)
    assert np.array_equal(answers.ends(0), [1, 0, 0])
    assert np.array_equal(answers.ends(1), [0, 0, 1])
