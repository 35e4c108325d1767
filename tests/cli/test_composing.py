"""From finished models to an answer of their cascade, by the command line alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.store import read_spec
from tests.cli.test_way_of_a_model import QUICK, QUICKLY


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("composing")


@pytest.fixture(scope="module")
def command(root: Path) -> Callable[..., str]:
    """``command(*arguments)`` gives what it printed; it has to succeed."""
    settings = {"MODEL_STORE": str(root / "store"), "MODEL": "both", "DEVICE": "cpu", "PRECISION": "float32"}
    runner = CliRunner(env={f"LOWFIRST_{name}": value for name, value in settings.items()})

    def run(*arguments: str | Path) -> str:
        done = runner.invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


@pytest.fixture(scope="module")
def said(command: Callable[..., str], root: Path, shapes: Path) -> dict[str, str]:
    """What each command printed on the way from photographs to a calibrated cascade of a model at two sizes."""
    run = root / "run"
    command("train", "mobilenet_v1_025", "--data", shapes, "--out", run, *QUICK)
    return {
        "compose": command("compose", "both", "--stage", f"{run}@32", "--stage", run),
        "calibrate": command("calibrate", "both", "--data", shapes, *QUICKLY),
        "evaluate": command("evaluate", "both", "--data", shapes, "--precision", "float32", "--json", *QUICKLY),
    }


def test_composing_prints_stages_costs_and_what_comes_next(said: dict[str, str], root: Path) -> None:
    folder = root / "store" / "both" / "1"
    first, last = read_spec(folder).mmacs
    assert said["compose"] == (
        f"composed {folder} of run-32 {first:.1f}, run-64 {last:.1f} million multiply-adds; next: "
        "lowfirst calibrate both/1 --data DIR\n"
    )


def test_composed_cascade_is_calibrated_on_what_its_models_were_not_trained_on(
    said: dict[str, str], root: Path
) -> None:
    spec = read_spec(root / "store" / "both" / "1")
    assert "eager float32, 10 photographs, bounds at 95 %" in said["calibrate"]
    assert spec.default_threshold is not None
    assert {table.n for table in spec.calibration} == {10}


def test_it_is_measured_by_stage(said: dict[str, str]) -> None:
    measured = json.loads(said["evaluate"])
    assert list(measured["stages"]) == ["run-32", "run-64"]
    assert (measured["curve"][0]["exit_rate"], measured["curve"][-1]["exit_rate"]) == (1, 0)


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize(("threshold", "exits"), [("0", "run-32"), ("1", "run-64")])
def test_it_answers_with_the_stage_at_which_an_image_ended(
    command: Callable[..., str], shapes: Path, threshold: str, exits: str
) -> None:
    photograph = shapes / "val" / "circle" / "00.jpg"
    (answer,) = json.loads(command("classify", "--json", "--threshold", threshold, photograph))
    assert answer["exit"] == exits
    assert answer["label"] in ("circle", "square", "triangle")


@pytest.mark.usefixtures("said")
def test_it_is_listed(command: Callable[..., str]) -> None:
    (listed,) = json.loads(command("models", "--json"))
    assert (listed["name"], listed["network"], listed["stages"]) == ("both", "composed", ["run-32", "run-64"])


@pytest.mark.usefixtures("said")
def test_it_is_calibrated_without_labels(command: Callable[..., str], root: Path, shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "store" / "both" / "1", root / "store" / "both" / "2")
    for path in (shapes / "val").glob("*/*.jpg"):
        for copy in range(2):
            (tmp_path / f"{path.parent.name}-{path.stem}-{copy}.jpg").write_bytes(path.read_bytes() + bytes([copy]))
    printed = command("calibrate", "both/2", "--data", tmp_path, "--unlabelled", *QUICKLY)
    assert "eager float32, 18 photographs" in printed
    assert not any(table.is_labelled for table in read_spec(root / "store" / "both" / "2").calibration)
    shutil.rmtree(root / "store" / "both" / "2")
