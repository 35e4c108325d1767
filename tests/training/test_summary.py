"""What training found is said before it starts, and what would fail after it is warned of."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from service.training.data import find, hold_out
from service.training.loop import train
from service.training.options import TrainOptions
from service.training.summary import Summary, few_to_certify, summarise

MakeOptions = Callable[..., TrainOptions]


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the photographs, to be changed."""
    return Path(shutil.copytree(shapes, tmp_path / "data"))


def _summary(options: TrainOptions) -> Summary:
    return summarise(options, *hold_out(find(options.data, "train"), options.calibration_share, options.seed))


def test_summary_counts_classes_photographs_and_what_is_skipped(make_options: MakeOptions, data: Path) -> None:
    for name in ("train/circle/1.heic", "val/square/2.heic", "train/._x.jpg"):
        (data / name).touch()
    assert _summary(make_options(data=data)).lines() == (
        "3 classes; 51 photographs to train on, 17 to 17 per class; 21 held out for calibration; 18 in val/",
        "skipped: 2 .heic, 1 hidden",
    )


def test_summary_says_that_there_is_no_val(make_options: MakeOptions, data: Path) -> None:
    (line,) = _summary(make_options(data=data / "train")).lines()
    assert line.endswith("21 held out for calibration; no val/ to evaluate on")


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        ({"calibration_share": 0}, "no calibration table can be made from these photographs"),
        ({"calibration_share": 0.1}, "6 photographs are held out of training; calibration needs 20"),
        ({}, "21 photographs are held out, of which 10 photographs certify: .* an agreement over 74.1 % cannot be"),
    ],
    ids=str,
)
def test_too_few_held_out_are_warned_of(make_options: MakeOptions, changed: dict[str, object], warning: str) -> None:
    (said,) = _summary(make_options(**changed)).warnings
    assert re.search(warning, said)


def test_network_without_an_exit_needs_nothing_held_out(make_options: MakeOptions) -> None:
    assert _summary(make_options(network="mobilenet_v1_025", calibration_share=0)).warnings == ()


@pytest.mark.parametrize(("certifying", "warned"), [(0, True), (14, True), (58, True), (59, False), (500, False)])
def test_fewer_than_59_certify_no_agreement_of_95_percent(certifying: int, warned: bool) -> None:
    assert (few_to_certify(certifying) is not None) == warned


def test_val_of_other_classes_is_warned_of(make_options: MakeOptions, data: Path) -> None:
    (data / "val" / "circle").rename(data / "val" / "disc")
    said = _summary(make_options(data=data)).warnings
    assert "val/ has classes that train/ lacks: disc; evaluating on it will be refused" in said
    assert "val/ has no photograph of circle: they will not be evaluated" in said


def test_summary_is_given_before_the_first_step(make_options: MakeOptions) -> None:
    seen: list[str] = []
    train(
        make_options(epochs=1),
        on_start=lambda summary: seen.append(summary.lines()[0]),
        on_step=lambda now: seen.append(f"step {now.step}"),
    )
    assert seen[0].startswith("3 classes; 51 photographs to train on")
    assert seen[1] == "step 1"
