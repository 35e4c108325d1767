"""Commands explain themselves, fail in one line, and stop when told to."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.model_spec import SPEC
from service.networks.registry import BACKBONES, names
from service.store import read_spec, write_spec
from service.training.options import TrainOptions

Lowfirst = Callable[..., Any]

COMMANDS = (
    "serve", "deploy", "classify", "train", "calibrate", "quantise", "evaluate", "report", "publish", "compose",
    "models", "bench",
)  # fmt: skip
QUICK = ("--resolution", "64", "--epochs", "1", "--device", "cpu", "--precision", "float32", "--workers", "0")

# Whatever started the tests may have told its children to ignore the interrupt.
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from service.cli import main; main()"
)


def test_help_names_every_command(lowfirst: Lowfirst) -> None:
    done = lowfirst("--help")
    assert done.status == 0
    assert all(command in done.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_every_option_has_help(lowfirst: Lowfirst, command: str) -> None:
    done = lowfirst(command, "--help")
    assert done.status == 0
    assert f"lowfirst {command}" in done.out
    assert done.err == ""


def test_training_has_every_option_with_its_default(lowfirst: Lowfirst, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = " ".join(word for word in lowfirst("train", "--help").out.split() if word != "│")
    for field in dataclasses.fields(TrainOptions):
        named = {"network": "network", "network_options": "--option"}.get(field.name)
        assert named or f"--{field.name.replace('_', '-')} " in done
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"[default: {field.default}]" in done
    assert all(f"--{name} / --no-{name} " in done for name in ("augment", "progressive"))
    assert "--recipe " in done
    assert "--resume " in done


def test_architectures_are_listed_with_the_papers_costs(lowfirst: Lowfirst) -> None:
    rows = {row["name"]: row for row in json.loads(lowfirst("models", "--architectures", "--json").out)}
    assert list(rows) == names()
    row = rows["ms_mobilenet_v1_050"]
    assert (round(row["low_mmacs"], 1), round(row["high_mmacs"], 1), row["resolution"]) == (49.2, 195.1, 256)
    assert rows["ms_densenet121"]["resolution"] == 224
    assert rows["mobilenet_v1_050"]["low_mmacs"] == 0
    assert (rows["resnet50"]["parameters"], rows["ms_resnet50"]["parameters"]) == (25_557_032, 2 * 25_557_032)
    assert "low_ms" not in row


def test_architectures_are_listed_as_a_table(lowfirst: Lowfirst) -> None:
    printed = lowfirst("models", "--architectures").out
    header, *lines = printed.splitlines()
    assert header.split() == ["network", "params", "M", "pixels", "low", "M", "high", "M"]
    assert [line.split()[0] for line in lines[: len(BACKBONES)]] == list(BACKBONES)
    assert "NAME trains at one scale; ms_NAME at two" in printed


def test_empty_store_is_said_to_be_empty(lowfirst: Lowfirst, tmp_path: Path) -> None:
    assert lowfirst("models").out == f"{tmp_path / 'store'} holds no model\n"
    assert json.loads(lowfirst("models", "--json").out) == []


def test_a_model_that_cannot_be_read_is_named_and_the_others_are_listed(
    lowfirst: Lowfirst, tiny_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = shutil.copytree(tiny_store, tmp_path / "spoiled")
    (store / "tiny" / "2").mkdir()
    (store / "tiny" / "2" / "model.json").write_text("{")
    monkeypatch.setenv("LOWFIRST_MODEL_STORE", str(store))
    done = lowfirst("models", "--json")
    assert [row["version"] for row in json.loads(done.out)] == [1]
    assert done.err.startswith("tiny/2 is left out: ")
    assert "model.json cannot be read" in done.err


def test_a_long_name_is_listed_whole(
    lowfirst: Lowfirst, tiny_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "photographs-of-the-northern-warehouse"
    folder = Path(shutil.copytree(tiny_store / "tiny", tmp_path / "named" / name))
    write_spec(folder / "1", dataclasses.replace(read_spec(folder / "1"), name=name))
    monkeypatch.setenv("LOWFIRST_MODEL_STORE", str(folder.parent))
    assert f"{name}/1 " in lowfirst("models").out


ERRORS = {
    "train missing data": (["train", "resnet18", "--data", "nowhere", "--out", "x"], "data is 'nowhere', which is no"),
    "train unknown network": (["train", "resnet1", "--data", "x", "--out", "x"], "network is 'resnet1'; it must be"),
    "train odd resolution": (
        ["train", "resnet18", "--data", "x", "--out", "x", "--resolution", "97"],
        "resolution is 97; it must be even",
    ),
    "train negative seed": (["train", "resnet18", "--data", "x", "--out", "x", "--seed", "-1"], "seed is -1"),
    "train no key": (
        ["train", "resnet18", "--data", "x", "--out", "x", "--option", "fusion"],
        "option is 'fusion'; it must be KEY=VALUE",
    ),
    "train resume nothing": (["train", "resnet18", "--data", "{data}", "--out", "x", "--resume"], "x holds no run to"),
    "calibrate no run": (["calibrate", "nowhere", "--data", "x"], "model is 'nowhere'; it is not a run folder, and"),
    "evaluate no model": (["evaluate", "nobody", "--data", "x"], "model is 'nobody'; "),
    "report no model": (["report", "nobody", "--data", "x", "--out", "y"], "model is 'nobody'; "),
    "publish no run": (["publish", "nowhere", "--name", "x"], "nowhere holds no model"),
    "compose no model": (["compose", "x", "--stage", "nobody"], "model is 'nobody'; it is not a run folder, and "),
    "compose no pixels": (["compose", "x", "--stage", "a@big"], "stage is 'a@big'; it must be MODEL or MODEL@PIXELS"),
    "compose 0 pixels": (["compose", "x", "--stage", "a@0"], "stage is 'a@0'; it must be MODEL or MODEL@PIXELS"),
    "compose no name": (["compose", "X", "--stage", "nobody"], "model is 'nobody'; "),
    "calibrate both": (
        ["calibrate", "x", "--data", "x", "--unlabelled", "--split", "val"],
        "split is 'val'; it must be absent: --unlabelled and --from-log use all images",
    ),
    "classify no model": (["classify", "--model", "nobody", "x.jpg"], "model is 'nobody'; "),
    "classify a path": (["classify", "--model", "../tiny", "x.jpg"], "model is '..'; it must be a name of"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_is_one_line_and_status_1(
    lowfirst: Lowfirst, name: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, message = ERRORS[name]
    monkeypatch.chdir(tmp_path)
    done = lowfirst(*(argument.replace("{data}", str(shapes)) for argument in arguments))
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["models"], ["classify", "x.jpg"], ["serve"]])
def test_setting_out_of_bounds_is_one_line_too(
    lowfirst: Lowfirst, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWFIRST_PORT", "http")
    done = lowfirst(*command)
    assert done.status == 1
    assert done.err.startswith("error: LOWFIRST_PORT is 'http'; it must be a valid integer")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["train"], ["classify"], ["nonsense"], ["models", "--nonsense"]])
def test_wrong_usage_is_status_2(lowfirst: Lowfirst, arguments: list[str]) -> None:
    done = lowfirst(*arguments)
    assert done.status == 2
    assert "Usage: lowfirst" in done.err


def test_broken_model_is_named(lowfirst: Lowfirst, tiny_store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "tiny" / "1"
    folder.mkdir(parents=True)
    (folder / SPEC).write_bytes((tiny_store / "tiny" / "1" / SPEC).read_bytes())
    done = lowfirst("classify", "--model", "tiny", "x.jpg")
    assert (done.status, done.err) == (1, f"error: {folder / 'weights.safetensors'} is missing\n")


def test_photograph_that_cannot_be_read_is_named_among_the_others(
    lowfirst: Lowfirst, tiny_store: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWFIRST_MODEL_STORE", str(tiny_store))
    monkeypatch.chdir(tmp_path)
    Path("text.jpg").write_text("no photograph")
    shutil.copy(shapes / "val" / "circle" / "00.jpg", "whole.jpg")
    done = lowfirst("classify", "--model", "tiny", "text.jpg", "whole.jpg", "nowhere.jpg")
    assert done.status == 1
    assert "whole.jpg" in done.out
    first, second = done.err.splitlines()
    assert first.startswith("text.jpg: image is 13 bytes of an unknown format")
    assert second.startswith("nowhere.jpg: ")


def test_unreadable_photographs_are_named_and_counted(
    lowfirst: Lowfirst, shapes: Path, tiny_store: Path, tmp_path: Path
) -> None:
    val = tmp_path / "val"
    for name in ("ant", "bee", "cat", "dog"):
        (val / name).mkdir(parents=True)
        (val / name / "00.jpg").write_bytes((shapes / "val" / "circle" / "00.jpg").read_bytes())
    (val / "cat" / "empty.jpg").touch()
    model = tiny_store / "tiny" / "1"
    done = lowfirst("evaluate", model, "--data", tmp_path, "--device", "cpu", "--workers", "0", "--json")
    assert done.status == 0
    assert done.err == f"1 unreadable, left out:\n  {val / 'cat' / 'empty.jpg'}\n"
    assert json.loads(done.out)["images"] == 4


def test_papers_recipe_is_taken_but_for_what_is_given(lowfirst: Lowfirst, shapes: Path, tmp_path: Path) -> None:
    arguments = ("train", "mobilenet_v1_025", "--data", shapes, "--out", tmp_path / "run", "--recipe", "paper")
    assert "a step needs 256: lower --batch-size" in lowfirst(*arguments, *QUICK).err
    done = lowfirst(*arguments, *QUICK, "--batch-size", "16", "--option", "fusion=after_relu")
    assert "options that mobilenet_v1_025 has" in done.err
    assert lowfirst(*arguments, *QUICK, "--batch-size", "16").status == 0
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert (options["schedule"], options["min_scale"], options["weight_decay"]) == ("step", 0.08, 4e-5)
    assert (options["epochs"], options["batch_size"], options["progressive"]) == (1, 16, False)


def test_recipe_for_adapting_needs_weights_and_yields_to_what_is_given(
    lowfirst: Lowfirst, shapes: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWFIRST_MODEL_STORE", str(tiny_store))
    out = tmp_path / "run"
    arguments = ("train", "ms_mobilenet_v1_025", "--data", shapes / "train", "--out", out, "--recipe", "adapt", *QUICK)
    assert "init is null; it must be given for --recipe adapt" in lowfirst(*arguments).err
    done = lowfirst(*arguments, "--init", "tiny", "--batch-size", "16", "--option", "fusion=after_relu")
    assert done.status == 0, done.err
    options = json.loads((out / "options.json").read_text())
    assert (options["batch_size"], options["learning_rate"], options["label_smoothing"]) == (16, 0.03, 0.1)
    assert options["network_options"] == {"gated": True, "fusion": "after_relu"}


def test_fine_tuning_a_stored_model_is_one_command(
    lowfirst: Lowfirst, shapes: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWFIRST_MODEL_STORE", str(tiny_store))
    out = tmp_path / "run"
    done = lowfirst("train", "ms_mobilenet_v1_025", "--data", shapes / "train", "--out", out, "--init", "tiny", *QUICK,
                    "--batch-size", "16")  # fmt: skip
    assert done.status == 0, done.err
    spec = json.loads((out / SPEC).read_text())
    assert (spec["classes"], spec["recipe"]["init"]) == (["circle", "square", "triangle"], "tiny")


def test_interrupted_training_says_how_to_go_on(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    endless = ("--epochs", "1000", "--batch-size", "16", "--workers", "1")
    arguments = ("train", "ms_mobilenet_v1_025", "--data", str(shapes), "--out", str(out), *QUICK, *endless)
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("epoch 1 ") for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the decoding process is interrupted too
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] + "\n" == f"interrupted; to continue {out}, run the same command with --resume\n"


def test_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "service.cli", "evaluate", "nobody", "--data", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: model is 'nobody'; ")


@pytest.mark.parametrize(("asked", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_train_do_not_spin_unless_asked_to(tmp_path: Path, asked: str | None, policy: str) -> None:
    environment = {**os.environ, "OMP_DISPLAY_ENV": "TRUE"}  # the OpenMP runtime says what it has read
    environment.pop("OMP_WAIT_POLICY", None)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "service.cli",
            "train",
            "ms_resnet18",
            "--data",
            "nowhere",
            "--out",
            str(tmp_path / "x"),
        ],
        env=environment | ({"OMP_WAIT_POLICY": asked} if asked else {}),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr
    assert "error: data is 'nowhere'" in done.stderr
