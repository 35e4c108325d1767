"""Eight-bit stages are kept where they answer as float32 does, and leave nothing behind where they do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.errors import DataError
from service.evaluation.calibrate import calibrate
from service.evaluation.quantise import quantise
from service.inference.predictor import Predictor
from service.inference.runtimes import available, is_quantised
from service.store import read_spec
from service.training.loop import train
from service.training.options import TrainOptions

pytest.importorskip("nncf", reason="NNCF is missing: pip install '.[int8]'")


@pytest.mark.parametrize("network", ["mobilenet_v1_025", "ms_mobilenet_v1_025", "ms3_mobilenet_v1_025"])
def test_every_stage_is_quantised_certified_and_served(
    shapes: Path, tmp_path: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrainOptions(
        network, shapes, tmp_path / "run", 64, epochs=1, batch_size=16,
        calibration_share=0.3, device="cpu", precision="float32", workers=0,
    )  # fmt: skip
    train(options)
    before = calibrate(options.out, shapes, device="cpu", workers=0)
    monkeypatch.setattr("service.evaluation.quantise.MIN_AGREEMENT", 0.0)  # it hardly learnt a thing
    spec, agreement = quantise(options.out, shapes, workers=0)
    assert read_spec(options.out) == spec
    assert is_quantised(spec)
    assert not is_quantised(before)
    assert 0 <= agreement <= 1
    assert spec.calibration[-1].precision == "int8"
    predictor = Predictor.load(options.out, "cpu", "int8", "openvino")
    assert [tuple(logits.shape) for logits in predictor.answers(predictor.noise(3))] == [(3, 3)] * spec.depth
    assert ("openvino", "int8") in available(predictor.device, spec)


def test_stages_that_answer_otherwise_are_not_kept(
    calibrated: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(calibrated, tmp_path / "run"))
    monkeypatch.setattr("service.evaluation.quantise.MIN_AGREEMENT", 1.1)
    with pytest.raises(DataError, match="110 % are needed: not kept"):
        quantise(run, shapes, workers=0)
    assert read_spec(run) == read_spec(calibrated)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in calibrated.iterdir())


def test_uncalibrated_run_is_refused(run: Path, shapes: Path) -> None:
    with pytest.raises(DataError, match="has no default threshold: run `lowfirst calibrate"):
        quantise(run, shapes, workers=0)
