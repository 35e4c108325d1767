"""``model.json``: what is written is read again, earlier formats too; what no model can have is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from service.calibration_table import CalibrationRow, CalibrationTable
from service.errors import BrokenModel, DataError
from service.images.transforms import Preprocessing
from service.model_spec import FORMAT, SPEC, TAKEN, Architecture, ModelSpec
from service.stages import StageSpec
from service.store import read_spec

Path_ = tuple[str | int, ...]

STAGES = (
    StageSpec("low", 16, 1.25, 1.5),
    StageSpec("middle", 32, 2.5, 1.1, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    StageSpec("high", 64, 5.0, 0.7),
)
ROWS = (CalibrationRow(0.0, (7, 0, 0), 2, 1, 1, 5), CalibrationRow(1.0, (0, 0, 7), 0, 0, 0, 5))
UNLABELLED = (CalibrationRow(0.0, (7, 0, 0), 2), CalibrationRow(1.0, (0, 0, 7), 0))
SPECIMEN = ModelSpec(
    name="specimen",
    version=3,
    architecture=Architecture("ms3_resnet18", 2, {"projection": False}),
    classes=("a bee", "Ä cat"),
    class_folders=("n01", "n02"),
    preprocessing=Preprocessing(resize=75, crop=64, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    stages=STAGES,
    weights_sha256="0" * 64,
    default_threshold=0.65,
    calibration=(
        CalibrationTable("eager", "float32", 7, ROWS),
        CalibrationTable("openvino", "bfloat16", 7, UNLABELLED, 0.8, is_labelled=False),
    ),
    recipe={"seed": 1, "init": None},
)
UNCALIBRATED = dataclasses.replace(SPECIMEN, default_threshold=None, calibration=())

# As version 0.3 writes it.
FIRST = {
    "name": "old",
    "version": 1,
    "architecture": {"network": "ms_resnet18", "num_classes": 2, "options": {}},
    "classes": ["bee", "cat"],
    "class_folders": ["n01", "n02"],
    "preprocessing": {"resize": 75, "crop": 64, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    "low_mmacs": 1.25,
    "high_mmacs": 5.0,
    "weights_sha256": "0" * 64,
    "temperature": {"low": 1.5, "high": 0.7},
    "default_threshold": 0.65,
    "calibration": [
        {
            "runtime": "eager",
            "precision": "float32",
            "n": 7,
            "rows": [
                {
                    "threshold": threshold,
                    "exited": exited,
                    "disagreements": disagreements,
                    "low_right_high_wrong": disagreements // 2,
                    "low_wrong_high_right": 0,
                    "right": 5,
                }
                for threshold, exited, disagreements in ((0.0, 7, 2), (0.5, 3, 1), (1.0, 0, 0))
            ],
            "default_threshold": None,
        }
    ],
    "dataset": "",
    "recipe": {},
    "training": {},
    "code_version": "0.3.0",
    "files": {},
    "format": 1,
}


def changed(path: Path_, value: Any, raw: Any = None) -> str:
    """``SPECIMEN`` with another ``value`` at ``path``."""
    told = json.loads(SPECIMEN.to_json()) if raw is None else json.loads(json.dumps(raw))
    *parents, last = path
    where = told
    for parent in parents:
        where = where[parent]
    where[last] = value
    return json.dumps(told)


def test_spec_survives_its_json() -> None:
    assert ModelSpec.from_json(SPECIMEN.to_json()) == SPECIMEN


@pytest.mark.parametrize("stages", [STAGES[2:], STAGES[1:], STAGES])
def test_spec_of_any_depth_that_was_never_calibrated_survives_its_json(stages: tuple[StageSpec, ...]) -> None:
    bare = dataclasses.replace(UNCALIBRATED, stages=stages)
    assert ModelSpec.from_json(bare.to_json()) == bare


def test_first_format_is_read_as_two_stages() -> None:
    spec = ModelSpec.from_json(json.dumps(FIRST))
    assert spec.stages == (StageSpec("low", 32, 1.25, 1.5), StageSpec("high", 64, 5.0, 0.7))
    assert spec.format == FORMAT
    (table,) = spec.calibration
    assert [row.ends for row in table.rows] == [(7, 0), (3, 4), (0, 7)]
    assert [(row.right_last_wrong, row.wrong_last_right, row.right) for row in table.rows] == [
        (1, 0, 5), (0, 0, 5), (0, 0, 5),
    ]  # fmt: skip
    assert table.is_labelled
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_first_format_without_a_low_pass_is_read_as_one_stage() -> None:
    spec = ModelSpec.from_json(json.dumps({**FIRST, "low_mmacs": 0.0, "calibration": []}))
    assert spec.stages == (StageSpec("single", 64, 5.0, 0.7),)


def test_shipped_models_are_read_whatever_their_format() -> None:
    for path in (Path(__file__).parents[1] / "model_store").glob(f"*/*/{SPEC}"):
        assert [stage.name for stage in ModelSpec.from_json(path.read_text()).stages] == ["low", "high"]


def test_costs_follow_from_the_stages() -> None:
    assert SPECIMEN.mmacs == (1.25, 2.5, 5.0)
    assert SPECIMEN.mmacs_up_to == (1.25, 3.75, 8.75)
    assert SPECIMEN.single_scale_mmacs == 5.0
    assert SPECIMEN.mean_mmacs((0.5, 0.25, 0.25)) == pytest.approx(0.5 * 1.25 + 0.25 * 3.75 + 0.25 * 8.75)
    assert (SPECIMEN.depth, SPECIMEN.resolutions) == (3, (16, 32, 64))


def test_threshold_to_start_with_is_that_of_the_runtime_and_precision() -> None:
    assert SPECIMEN.start_threshold("openvino", "bfloat16") == 0.8
    assert SPECIMEN.start_threshold("eager", "float32") == 0.65
    assert (
        dataclasses.replace(SPECIMEN, default_threshold=None, calibration=()).start_threshold("eager", "float32") == 1
    )


NAN, INF = float("nan"), float("inf")
MEAN, STD = ("preprocessing", "mean"), ("preprocessing", "std")
FIRST_ROW: Path_ = ("calibration", 0, "rows", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 3, "format is 3; this version reads up to 2"),
        (("format",), 0, "format is 0"),
        (("format",), "2", "format is '2'"),
        (("flavour",), "sweet", "another version of lowfirst wrote it: 1 unknown fields, 'flavour' first"),
        # classes
        (("classes",), ["bee"], "1 classes for 2 logits"),
        (("classes",), [1, 2], "classes must be printable"),
        (("classes",), ["bee", "\ud800"], "classes must be printable"),
        (("classes",), ["bee", "cat\n"], "classes must be printable"),
        (("classes",), ["bee", ""], "classes must be printable"),
        (("classes",), ["bee", "bee"], "classes must be different"),
        (("class_folders",), ["n01", None], "class_folders must be printable"),
        (("class_folders",), ["n01", "n01"], "class_folders must be different"),
        # pixels
        (("preprocessing", "crop"), 76, "crop is 76; it must be 1 to resize, which is 75"),
        (("preprocessing", "crop"), 0, "crop is 0"),
        (("preprocessing", "crop"), "big", "crop is 'big'"),
        (("preprocessing", "crop"), 64.5, "crop is 64.5"),
        (("preprocessing", "resize"), NAN, "preprocessing"),
        (("preprocessing", "crop"), 66, "the largest resolution must be the crop, 66"),
        (STD, [0.4, 0, 0.6], "preprocessing: std is"),
        (STD, [0.4, -0.1, 0.6], "preprocessing: std is"),
        (STD, [0.4, NAN, 0.6], "preprocessing: std is"),
        (STD, [0.4, 0.5], "preprocessing: std is"),
        (MEAN, [0.1, INF, 0.3], "preprocessing: mean is"),
        (MEAN, ["a", "b", "c"], "preprocessing: mean is"),
        # stages
        (("stages", 1, "name"), "low", "each with a unique name"),
        (("stages", 1, "name"), "", "stages: name is ''"),
        (("stages", 1, "name"), 2, "stages: name is 2"),
        (("stages", 1, "name"), "Middle one", "stages: name is 'Middle one'"),
        (("stages", 1, "name"), "mittlere\r\nX: y", "stages: name is"),
        (("stages", 1, "name"), "x" * 65, "it must be at most 64"),
        *((("stages", 1, "name"), name, f"stages: name is '{name}'") for name in TAKEN),
        (("stages", 0, "resolution"), 0, "stage low: resolution is 0; it must be 1 to crop, 64"),
        (("stages", 0, "resolution"), 65, "stage low: resolution is 65"),
        (("stages", 0, "resolution"), 15.5, "stage low: resolution is 15.5"),
        (("stages", 2, "resolution"), 32, "the largest resolution must be the crop, 64"),
        (("stages", 0, "mmacs"), NAN, "stage low: mmacs is nan"),
        (("stages", 0, "mmacs"), INF, "stage low: mmacs is inf"),
        (("stages", 0, "mmacs"), 0, "stage low: mmacs is 0"),
        (("stages", 0, "mmacs"), "many", "stage low: mmacs is 'many'"),
        (("stages", 0, "mmacs"), True, "stage low: mmacs is True"),
        (("stages", 2, "temperature"), 0, "stage high: temperature is 0"),
        (("stages", 1, "std"), [0.25, 0.25, 0], "stage middle: std is"),
        (("stages", 0, "std"), [0.25, 0, 0.25], "stage low: std is"),
        (("stages", 0, "mean"), [0.1], "stage low: mean is"),
        (("stages", 1, "mmacs"), 1.25, "middle costs 1.25 million multiply-adds, not more than low before it"),
        (("stages", 2, "mmacs"), 2.0, "high costs 2 million multiply-adds, not more than middle before it with 2.5"),
        # thresholds and tables
        (("default_threshold",), 1.5, "default_threshold is 1.5"),
        (("default_threshold",), NAN, "default_threshold is nan"),
        (("calibration", 0, "n"), 0, r"calibration \(eager float32\): n is 0"),
        (("calibration", 0, "n"), 7.5, "n is 7.5"),
        (("calibration", 0, "n"), 8, "counts at 0.0 do not fit 8 images and 3 stages"),
        (("calibration", 0, "rows"), [], "thresholds must rise from 0 to 1"),
        (("calibration", 0, "default_threshold"), -1, "default_threshold is -1"),
        ((*FIRST_ROW, "threshold"), 0.1, "thresholds must rise from 0 to 1"),
        ((*FIRST_ROW, "threshold"), 1.0, "thresholds must rise from 0 to 1"),
        ((*FIRST_ROW, "ends"), [7, 0], "counts at 0.0 do not fit 7 images and 3 stages"),
        ((*FIRST_ROW, "ends"), [8, 0, -1], "counts at 0.0"),
        ((*FIRST_ROW, "ends"), [3.5, 3.5, 0], "counts at 0.0"),
        ((*FIRST_ROW, "disagreements"), 8, "counts at 0.0"),
        ((*FIRST_ROW, "disagreements"), -1, "counts at 0.0"),
        ((*FIRST_ROW, "right"), 8, "counts at 0.0"),
        ((*FIRST_ROW, "right"), None, "counts at 0.0"),
        ((*FIRST_ROW, "wrong_last_right"), 8, "counts at 0.0"),
        (("calibration", 0, "is_labelled"), False, "counts at 0.0"),
    ],
)
def test_what_no_model_can_have_is_named(path: Path_, value: Any, message: str) -> None:
    with pytest.raises((KeyError, TypeError, ValueError), match=message):
        ModelSpec.from_json(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("architecture",), "ms_resnet18"),
        (("architecture",), {"network": "ms_resnet18"}),
        (("preprocessing",), {"middle": 1}),
        (("preprocessing",), None),
        (("stages",), None),
        (("stages",), [{"name": "low"}]),
        (("stages", 0), {"name": "low", "resolution": 16, "mmacs": 1, "colour": "red"}),
        (("calibration",), None),
        (("calibration", 0, "rows"), None),
        (FIRST_ROW, {"threshold": 0}),
        ((*FIRST_ROW, "threshold"), "zero"),
        ((*FIRST_ROW, "ends"), "low"),
        ((*FIRST_ROW, "right"), "five"),
        (("default_threshold",), "half"),
        (("classes",), None),
    ],
)
def test_anything_else_is_a_broken_model_that_names_its_file(path: Path_, value: Any, tmp_path: Path) -> None:
    (tmp_path / SPEC).write_text(changed(path, value))
    with pytest.raises(BrokenModel, match=r"model\.json cannot be read"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("low_mmacs",), 6.0),
        (("low_mmacs",), NAN),
        (("high_mmacs",), "many"),
        (("temperature",), {"middle": 1.0}),
        (("calibration", 0, "rows", 0, "exited"), 8),
        (("calibration", 0, "rows", 1, "disagreements"), 4),
    ],
)
def test_first_format_is_checked_as_well(path: Path_, value: Any, tmp_path: Path) -> None:
    (tmp_path / SPEC).write_text(changed(path, value, FIRST))
    with pytest.raises(BrokenModel, match=r"model\.json cannot be read"):
        read_spec(tmp_path)


def test_model_without_a_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="stages must be at least one"):
        ModelSpec.from_json(changed(("stages",), [], json.loads(UNCALIBRATED.to_json())))


def test_what_training_did_not_say_is_named() -> None:
    assert SPECIMEN.told("seed") == 1
    with pytest.raises(DataError, match="lacks 'epochs': train it again with this version"):
        SPECIMEN.told("epochs")
