"""Eight-bit stages are kept where they answer as float32 does, and leave nothing behind where they do not."""

from __future__ import annotations

import math
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from service.errors import DataError
from service.evaluation.calibrate import calibrate
from service.evaluation.quantise import quantise, surely_agrees, surely_faster
from service.inference.predictor import Predictor
from service.inference.runtimes import available, is_quantised
from service.store import read_spec
from service.training.loop import train
from service.training.options import TrainOptions

needs_nncf = pytest.mark.skipif(find_spec("nncf") is None, reason="NNCF is missing: pip install '.[int8]'")


def test_one_disagreement_in_132_is_not_99_percent() -> None:
    agrees = np.arange(132) > 0
    with pytest.raises(
        DataError, match=r"on 99\.24 % of 132 photographs, which is 96\.5 % or more .* not kept"
    ) as caught:
        surely_agrees(agrees)
    assert caught.value.field == "precision"


def test_agreement_is_bounded_by_what_so_many_photographs_can_show() -> None:
    assert surely_agrees(np.ones(299, dtype=bool)) == pytest.approx(0.05 ** (1 / 299))
    assert surely_agrees(np.arange(3000) > 19) == pytest.approx(0.9903, abs=0.0002)


def test_int8_is_kept_where_hardly_any_round_was_slower() -> None:
    ratios = [0.8] * 12 + [1.2] * 3
    assert surely_faster(ratios, "bfloat16") == (0.8, 0.8)


def test_int8_that_is_not_surely_faster_is_not_kept() -> None:
    ratios = [0.8] * 11 + [1.2] * 4  # by a median of chance alone
    with pytest.raises(DataError, match="takes 80 % of the time of bfloat16 on this machine, 120 % or less") as caught:
        surely_faster(ratios, "bfloat16")
    assert caught.value.field == "precision"


@needs_nncf
def test_too_few_photographs_are_refused_before_any_work(calibrated: Path, shapes: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(calibrated, tmp_path / "run"))
    with pytest.raises(DataError, match="even if all agree: 99 % takes 299; name a folder with more, --split NAME"):
        quantise(run, shapes, workers=0)
    assert read_spec(run) == read_spec(calibrated)


@needs_nncf
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
    monkeypatch.setattr("service.evaluation.quantise.MAX_TIME", math.inf)
    made = quantise(options.out, shapes, workers=0)
    spec = made.spec
    assert read_spec(options.out) == spec
    assert is_quantised(spec)
    assert not is_quantised(before)
    assert 0 <= made.agreement_at_least <= made.agreement <= 1
    assert 0 < made.time <= made.time_at_most
    assert spec.calibration[-1].precision == "int8"
    predictor = Predictor.load(options.out, "cpu", "int8", "openvino")
    assert [tuple(logits.shape) for logits in predictor.answers(predictor.noise(3))] == [(3, 3)] * spec.depth
    assert ("openvino", "int8") in available(predictor.device, spec)


@needs_nncf
def test_stages_that_save_no_time_are_not_kept(
    calibrated: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(calibrated, tmp_path / "run"))
    monkeypatch.setattr("service.evaluation.quantise.MIN_AGREEMENT", 0.0)
    monkeypatch.setattr("service.evaluation.quantise.MAX_TIME", 0.0)
    with pytest.raises(DataError, match="less than 0 % is needed: not kept"):
        quantise(run, shapes, workers=0)
    assert read_spec(run) == read_spec(calibrated)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in calibrated.iterdir())


@needs_nncf
def test_uncalibrated_run_is_refused(run: Path, shapes: Path) -> None:
    with pytest.raises(DataError, match="has no default threshold: run `lowfirst calibrate"):
        quantise(run, shapes, workers=0)
