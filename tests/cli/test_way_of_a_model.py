"""From photographs to answers by the command line alone: train, calibrate, evaluate, publish, models, classify."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.store import read_spec

Answer = dict[str, Any]

QUICK = (
    "--resolution", "64", "--epochs", "2", "--batch-size", "8", "--calibration-share", "0.3", "--device", "cpu",
    "--precision", "float32", "--workers", "0",
)  # fmt: skip
QUICKLY = ("--device", "cpu", "--workers", "0")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("way")


@pytest.fixture(scope="module")
def command(root: Path) -> Callable[..., str]:
    """``command(*arguments)`` gives what it printed; it has to succeed."""
    settings = {"MODEL_STORE": str(root / "store"), "MODEL": "shapes", "DEVICE": "cpu", "PRECISION": "float32"}
    runner = CliRunner(env={f"LOWFIRST_{name}": value for name, value in settings.items()})

    def run(*arguments: str | Path) -> str:
        done = runner.invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


@pytest.fixture(scope="module")
def said(command: Callable[..., str], root: Path, shapes: Path) -> dict[str, str]:
    """What each command printed on the way from photographs to a published model."""
    run = root / "run"
    return {
        "train": command("train", "ms_mobilenet_v1_025", "--data", shapes, "--out", run, *QUICK),
        "calibrate": command("calibrate", run, "--data", shapes, *QUICKLY),
        "evaluate": command("evaluate", run, "--data", shapes, "--precision", "float32", *QUICKLY),
        "evaluate --json": command("evaluate", run, "--data", shapes, "--precision", "float32", "--json", *QUICKLY),
        "publish": command("publish", run, "--name", "shapes"),
    }


def test_training_prints_what_it_found_a_line_an_epoch_and_what_comes_next(
    said: dict[str, str], root: Path, shapes: Path
) -> None:
    lines = said["train"].splitlines()
    assert lines[0].startswith("3 classes; 51 photographs to train on, ")
    assert [line.split("  ")[0] for line in lines[1:3]] == ["epoch 1", "epoch 2"]
    assert lines[3] == f"trained {root / 'run'}; next: lowfirst calibrate {root / 'run'} --data {shapes}"


def test_calibrating_prints_temperatures_the_default_and_the_bounds(said: dict[str, str], root: Path) -> None:
    spec = read_spec(root / "run")
    low, high = spec.temperatures
    temperatures = f"temperatures: low {low:.3f}, high {high:.3f}"
    assert said["calibrate"].startswith(f"{temperatures}; default threshold {spec.default_threshold:g}\n")
    assert "eager float32, 10 photographs, bounds at 95 %" in said["calibrate"]
    assert f"{spec.default_threshold:g} *" in said["calibrate"]


def test_evaluating_prints_a_table(said: dict[str, str]) -> None:
    assert "run: 18 photographs, eager float32" in said["evaluate"]
    assert "low alone" in said["evaluate"]
    assert " * " in said["evaluate"]


def test_evaluating_as_json_prints_json_alone(said: dict[str, str], root: Path) -> None:
    measured = json.loads(said["evaluate --json"])
    assert set(measured["default"]) == {"threshold", "accuracy", "exit_rate", "mean_mmacs"}
    assert measured["curve"][0]["exit_rate"] == 1
    assert measured == json.loads((root / "run" / "evaluation.json").read_text())


def test_publishing_says_where_and_how_to_serve(said: dict[str, str], root: Path) -> None:
    folder = root / "store" / "shapes" / "1"
    assert said["publish"] == f"published {folder}; next: lowfirst serve --model shapes\n"
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "curve.png", "model.json", "trained_on.bin", "weights.safetensors"
    }  # fmt: skip


@pytest.mark.usefixtures("said")
def test_published_model_is_listed(command: Callable[..., str], root: Path) -> None:
    (listed,) = json.loads(command("models", "--json"))
    spec = read_spec(root / "store" / "shapes" / "1")
    assert (listed["name"], listed["version"], listed["network"]) == ("shapes", 1, "ms_mobilenet_v1_025")
    assert (listed["classes"], listed["resolution"]) == (3, 64)
    assert (listed["low_mmacs"], listed["high_mmacs"]) == spec.mmacs
    assert "shapes" in command("models")


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("reference", ["shapes", "shapes/1"])
def test_published_model_measures_as_its_run(
    command: Callable[..., str], root: Path, shapes: Path, said: dict[str, str], reference: str
) -> None:
    printed = command("evaluate", reference, "--data", shapes, "--precision", "float32", "--json", *QUICKLY)
    of_its_run = json.loads(said["evaluate --json"].replace("run run", "shapes/1"))
    assert json.loads(printed) == {**of_its_run, "model": "shapes/1"}
    assert not (root / "store" / "shapes" / "1" / "evaluation.json").exists()


@pytest.fixture(scope="module")
def classify(command: Callable[..., str], said: dict[str, str]) -> Callable[..., list[Answer]]:  # noqa: ARG001
    """``classify(*arguments)`` gives the printed answers, by the published model."""

    def run(*arguments: str | Path) -> list[Answer]:
        answers: list[Answer] = json.loads(command("classify", "--json", *arguments))
        return answers

    return run


def test_photographs_are_answered_in_order(classify: Callable[..., list[Answer]], shapes: Path) -> None:
    files = sorted((shapes / "val" / "circle").iterdir())
    answers = classify(*files)
    assert [answer["file"] for answer in answers] == list(map(str, files))
    for answer in answers:
        assert answer["label"] == answer["top_k"][0]["label"] in ("circle", "square", "triangle")
        assert answer["model"] == {"name": "shapes", "version": 1}
        assert 0 < answer["score"] <= 1


@pytest.mark.parametrize(("threshold", "exits"), [("0", "low"), ("1", "high")])
def test_threshold_decides_which_pass_answers(
    classify: Callable[..., list[Answer]], shapes: Path, threshold: str, exits: str
) -> None:
    (answer,) = classify("--threshold", threshold, "--top-k", "2", shapes / "val" / "circle" / "00.jpg")
    assert (answer["exit"], answer["threshold"], len(answer["top_k"])) == (exits, float(threshold), 2)


@pytest.mark.usefixtures("said")
def test_answers_are_printed_as_a_table(
    command: Callable[..., str], shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shapes / "val")
    printed = command("classify", "square/00.jpg")
    assert "confidence" in printed
    assert "square/00.jpg" in printed


@pytest.mark.usefixtures("said")
def test_report_of_a_run_and_of_what_was_published_from_it_is_one_command(
    command: Callable[..., str], root: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.evaluation.comparison.TIMED_SECONDS", 0.0)  # times are not what is tested
    out = root / "report"
    printed = command("report", root / "run", "shapes", "--data", shapes, "--out", out, *QUICKLY)
    assert printed.splitlines()[0] == f"wrote {out / 'index.html'}"
    page = (out / "index.html").read_text()
    assert all(f'src="{picture.name}"' in page for picture in out.glob("*.png"))
    assert ">run</a>" in page
    assert ">shapes/1</a>" in page
