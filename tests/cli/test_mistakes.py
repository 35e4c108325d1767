"""Every command, used as somebody does who is new to it: one line that says what is wrong, status 2 or 1."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from service.cli import app

Lowfirst = Callable[..., Any]

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
DATA = ("--data", "nowhere")

# Arguments -> words of the answer. {file} is a text, {folder} an empty folder, {photographs} has train/ and val/.
USAGE: dict[str, list[tuple[list[str], str]]] = {
    "serve": [(["--port", "http"], "--port"), (["--threshold", "1"], "No such option"), (["tiny"], "unexpected extra")],
    "deploy": [(["--replicas", "two"], "--replicas"), (["--timeout", "soon"], "--timeout")],
    "classify": [
        ([], "Missing argument"),
        (["x.jpg", "--top-k", "0"], "--top-k"),
        (["x.jpg", "--threshold", "1.5"], "--threshold"),
        (["x.jpg", "--threshold", "half"], "--threshold"),
        (["x.jpg", "--modle", "tiny"], "No such option"),
    ],
    "train": [
        ([], "Missing argument"),
        (["resnet18"], "Missing option '--data'"),
        (["resnet18", *DATA, "--out", "x", "--epochs", "many"], "--epochs"),
        (["resnet18", *DATA, "--out", "x", "--recipe", "own"], "--recipe"),
    ],
    "calibrate": [([], "Missing argument"), (["x", *DATA, "--workers", "-1"], "--workers")],
    "quantise": [(["x"], "Missing option '--data'")],
    "evaluate": [
        (["x", *DATA, "--precision", "int4"], "'int8'"),
        (["x", *DATA, "--runtime", "onnx"], "'openvino'"),
    ],
    "report": [(["x", *DATA, "--out", "y", "--precision", "int8"], "--precision"), (["x", *DATA], "--out")],
    "publish": [(["x"], "Missing option '--name'")],
    "sign": [(["x"], "Missing option '--key'")],
    "import": [([], "Missing argument"), (["resnet18"], "Missing option '--name'")],
    "compose": [(["x"], "Missing option '--stage'")],
    "models": [(["--architecture"], "--architectures")],
    "bench": [(["x", "--escalated", "60"], "--escalated"), (["x", "--precision", "fp32"], "'float32'")],
}
WRONG: dict[str, list[tuple[list[str], str]]] = {
    "serve": [
        (["--port", "65536"], "LOWFIRST_PORT is 65536; it must be less than or equal to 65535"),
        (["--processes", "none"], "LOWFIRST_PROCESSES is 'none'; it must be auto, or a whole number"),
    ],
    "deploy": [(["--port", "70000"], "LOWFIRST_PORT is 70000")],
    "classify": [
        (["--model", "tiny", "x.jpg"], "model is 'tiny'; there is no model store {store} (LOWFIRST_MODEL_STORE)"),
        (["--model", "tiny/one", "x.jpg"], "model is 'tiny'; there is no model store"),
    ],
    "train": [
        (["resnet18", *DATA, "--out", "x"], "data is 'nowhere'"),
        (["resnet", *DATA, "--out", "x"], "network is 'resnet'; it must be one of"),
        (["resnet18", "--data", "{folder}", "--out", "x"], "{folder}"),
        (["resnet18", "--data", "{file}", "--out", "x"], "data is '{file}'"),
        (["resnet18", *DATA, "--out", "x", "--schedule", "linear"], "schedule is 'linear'; it must be one of cosine"),
        (["resnet18", *DATA, "--out", "x", "--precision", "int8"], "precision is 'int8'; it must be one of"),
        (["resnet18", *DATA, "--out", "x", "--option", "fusion"], "option is 'fusion'; it must be KEY=VALUE"),
        (
            ["mobilenet_v1_025", "--data", "{photographs}", "--out", "x", "--option", "width=2", "--device", "cpu"],
            "option is 'width'; it must be among the options that mobilenet_v1_025 has: none",
        ),
        (
            ["ms_resnet18", "--data", "{photographs}", "--out", "x", "--option", "fusoin=1", "--device", "cpu"],
            "option is 'fusoin'; it must be among the options that ms_resnet18 has: fusion, gated, projection",
        ),
        (["resnet18", "--data", "{photographs}", "--out", "{file}/x"], "{file}"),
    ],
    "calibrate": [
        (["tiny", *DATA], "model is 'tiny'; it is not a run folder, and there is no model store {store}"),
        (["{folder}", *DATA], "it is not a run folder"),
    ],
    "quantise": [(["{folder}", *DATA], "")],
    "evaluate": [(["tiny", *DATA], "model is 'tiny'; it is not a run folder")],
    "report": [(["tiny", *DATA, "--out", "y"], "model is 'tiny'; it is not a run folder")],
    "publish": [(["{folder}", "--name", "x"], "{folder} holds no model"), (["tiny", "--name", "x"], "tiny holds no")],
    "import": [
        (["resnet", "--name", "x"], "network is 'resnet'"),
        (["resnet18", "--name", "My Model", "--weights", "{file}"], ""),
        (["resnet18", "--name", "x", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["resnet18", "--name", "x", "--labels", "nowhere"], "labels 'nowhere' cannot be read"),
    ],
    "sign": [
        (["tiny", "--key", "{file}"], "model is 'tiny'; it is not a run folder, and there is no model store {store}"),
    ],
    "compose": [
        (["x", "--stage", "tiny"], "model is 'tiny'; it is not a run folder"),
        (["x", "--stage", "tiny@large"], "stage is 'tiny@large'; it must be MODEL or MODEL@PIXELS"),
    ],
    "models": [],
    "bench": [
        (["tiny"], "model is 'tiny'; it is not a run folder"),
        (["{tiny}", "--save", "nowhere/times.json"], "save is 'nowhere/times.json'; it must be a file in a folder"),
        (["{tiny}", "--save", "{folder}"], "save is '{folder}'; it must be a file in a folder"),
        (["{tiny}", "--device", "tpu"], "device is 'tpu'; it must be auto, cpu or a CUDA device"),
        (["{tiny}", "--device", "cpu", "--precision", "float16"], "precision is 'float16'"),
        (
            ["{tiny}", "--device", "cpu", "--precision", "int8", "--runtime", "eager"],
            "eager runs no int8, openvino does",
        ),
    ],
}
VARIABLES = [
    (["serve"], {"LOWFIRST_THREADS": "many"}, "LOWFIRST_THREADS is 'many'"),
    (["serve"], {"LOWFIRST_ROOT_PATH": "vision"}, "LOWFIRST_ROOT_PATH is 'vision'; it must be a path like /vision"),
    (["models"], {"LOWFIRST_DEVICE": "tpu"}, "device is 'tpu'"),
    (["classify", "x.jpg"], {"LOWFIRST_LOG_FORMAT": "xml"}, "LOWFIRST_LOG_FORMAT is 'xml'"),
]


def cases(table: dict[str, list[tuple[list[str], str]]]) -> list[Any]:
    return [pytest.param([name, *given], words, id=f"{name} {given}") for name in table for given, words in table[name]]


def test_every_command_is_misused_here() -> None:
    assert set(USAGE) == set(WRONG) == set(COMMANDS)


@pytest.mark.parametrize(("arguments", "words"), cases(USAGE))
def test_wrong_usage_is_one_line_and_status_2(lowfirst: Lowfirst, arguments: list[str], words: str) -> None:
    done = lowfirst(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert done.err.startswith("error: ")
    assert words in done.err
    assert f"see `lowfirst {arguments[0]} --help`" in done.err


@pytest.fixture
def places(tmp_path: Path, shapes: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What stands in braces in the cases."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    named = {"file": tmp_path / "file", "folder": tmp_path / "folder", "store": tmp_path / "store"}
    return {
        name: str(path) for name, path in {**named, "photographs": shapes, "tiny": tiny_store / "tiny" / "1"}.items()
    }


@pytest.mark.parametrize(("arguments", "words"), cases(WRONG))
def test_a_wrong_value_is_one_line_and_status_1(
    lowfirst: Lowfirst, places: dict[str, str], arguments: list[str], words: str
) -> None:
    done = lowfirst(*(argument.format(**places) for argument in arguments))
    assert (done.status, done.out) == (1, "")
    lines = [line for line in done.err.splitlines() if " INFO " not in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words.format(**places) in lines[0]
    for riddle in ("Traceback", "<lambda>", "<locals>", "None", "another one", "Error("):
        assert riddle not in lines[0]


@pytest.mark.parametrize(("arguments", "environment", "words"), VARIABLES)
def test_a_wrong_variable_is_one_line_and_status_1(
    lowfirst: Lowfirst, monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: dict[str, str], words: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = lowfirst(*arguments)
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert words in done.err


def serve(store: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """``lowfirst serve`` in a process of its own, which its log and its signals need, until it ends."""
    named = {"MODEL_STORE": str(store), "DEVICE": "cpu", "PORT": "0", **settings}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOWFIRST_")}
    environment = {**inherited, **{f"LOWFIRST_{name}": value for name, value in named.items()}}
    command = [sys.executable, "-m", "service.cli", "serve"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(("variable", "processes"), [("PORT", "1"), ("PORT", "2"), ("METRICS_PORT", "1")])
def test_a_taken_port_is_known_before_the_model_is_looked_for(tmp_path: Path, variable: str, processes: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = serve(tmp_path / "store", MODEL="nobody", PROCESSES=processes, **{variable: port})
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: LOWFIRST_{variable} is {port}; it must be a free port at 127.0.0.1 (")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_model_that_cannot_be_served_is_told_in_one_line(tmp_path: Path, processes: str) -> None:
    done = serve(tmp_path / "store", MODEL="nobody", PROCESSES=processes)
    *log, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert last == (f"error: model is 'nobody'; there is no model store {tmp_path / 'store'} (LOWFIRST_MODEL_STORE)")
    assert all(" INFO " in line for line in log)
    assert any("starting" in line for line in log)  # what it does is said at once


def test_a_store_that_is_not_there_is_named_with_its_variable(lowfirst: Lowfirst) -> None:
    done = lowfirst("models")
    assert (done.status, done.err) == (0, "there is no such folder (LOWFIRST_MODEL_STORE)\n")


def test_without_a_command_the_help_is_printed_and_the_status_is_2(lowfirst: Lowfirst) -> None:
    done = lowfirst()
    assert done.status == 2
    assert all(name in done.out for name in COMMANDS)
