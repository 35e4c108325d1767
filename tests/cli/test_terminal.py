"""What a person sees: next steps that a shell takes, tables of 80 columns, and a bar that spoils no line."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from service.cli import app, starting
from service.cli.console import columns, next_step, output
from service.log import STARTED, logger
from service.log import starting as starting_log

Lowfirst = Callable[..., Any]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_whole_within_80_columns(name: str) -> None:
    printed = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80", "TERM": "dumb"}).output
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    words = printed.replace(",", " ").split()
    for option in COMMANDS[name].params:
        if option.param_type_name == "option":
            assert all(each in words for each in [*option.opts, *option.secondary_opts])
            assert option.help, f"--{option.name} has no text"


def test_the_next_step_is_quoted_for_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    next_step("evaluate", Path("my run/[1]"), "--data", "it's", done="done", LOWFIRST_PROFILE=Path("a b.json"))
    printed = capsys.readouterr().out
    assert printed.startswith("done; next: ")
    words = shlex.split(printed.removeprefix("done; next: "))
    assert words == ["LOWFIRST_PROFILE=a b.json", "lowfirst", "evaluate", "my run/[1]", "--data", "it's"]


def test_a_table_is_as_wide_as_it_must_be_and_no_cell_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "width", 40)
    path = "/photographs/[of] the northern warehouse/gate/0001.jpg"
    columns(("file", "score", "exit"), [(path, "0.5", "low"), (path.replace("1", "2"), "10.25", "middle")])
    assert capsys.readouterr().out.splitlines() == [
        f"{'file':{len(path)}}  score  exit",
        f"{path}    0.5  low",
        f"{path.replace('1', '2')}  10.25  middle",
    ]


def test_the_models_that_are_shipped_are_listed_in_80_columns(
    lowfirst: Lowfirst, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWFIRST_MODEL_STORE", str(Path(__file__).parents[2] / "model_store"))
    listed = json.loads(lowfirst("models", "--json").out)
    header, *rows = lowfirst("models").out.splitlines()[: 1 + len(listed)]
    assert header.split() == ["model", "network", "px", "first", "M", "last", "M", "default"]
    assert max(map(len, [header, *rows])) <= 80
    assert [row.split()[0] for row in rows] == [f"{each['name']}/{each['version']}" for each in listed]


def test_a_bar_shows_the_start_on_a_terminal_and_leaves_when_anything_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Console(force_terminal=True, width=80)
    monkeypatch.setattr(starting, "errors", terminal)
    with terminal.capture() as shown, caplog.at_level(logging.INFO, logger.name), starting.bar(1):
        for step in ("loading", "measuring", "warming up"):
            starting_log.info("%s tiny/1", step)
        assert caplog.messages == []  # a log gets lines, a terminal the bar
        logger.info("serving tiny/1")
        starting_log.info("loading tiny/2")
    assert caplog.messages == ["serving tiny/1", "loading tiny/2"]
    assert "warming up tiny/1" in shown.get()
    assert starting_log.handlers == []


def test_the_bar_leaves_when_all_is_started_though_nothing_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "errors", Console(force_terminal=True, width=80, file=io.StringIO()))
    with starting.bar(1):
        assert len(starting_log.handlers) == 1
        starting_log.info(STARTED)
        assert starting_log.handlers == []


def test_without_a_terminal_there_is_no_bar(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger.name), starting.bar(1):
        starting_log.info("loading tiny/1")
    assert caplog.messages == ["loading tiny/1"]


def test_lines_of_epochs_and_the_bar_do_not_collide(shapes: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "service.cli",
        "train",
        "mobilenet_v1_025",
        "--data",
        str(shapes),
        "--resolution",
        "64",
    ]
    command += [
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "2",
        "--batch-size",
        "16",
        "--workers",
        "0",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0, seen.decode()
    lines = [line for line in screen(seen.decode()) if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1", "2"]
    assert all(line.rstrip().endswith("%") for line in lines)


def screen(sent: str) -> list[str]:
    """The lines that a terminal shows in the end: it knows line ends, erasing a line, and going up."""
    lines, at, column = [""], 0, 0
    while sent:
        if sent.startswith("\x1b["):
            end = next(i for i, sign in enumerate(sent[2:], 2) if sign.isalpha())
            number, sign = sent[2:end], sent[end]
            if sign == "A":
                at = max(0, at - int(number or 1))
            elif sign == "K":
                lines[at] = "" if number == "2" else lines[at][:column]
            sent = sent[end + 1 :]
            continue
        sign, sent = sent[0], sent[1:]
        if sign == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif sign == "\r":
            column = 0
            continue
        else:
            lines[at] = lines[at][:column].ljust(column) + sign + lines[at][column + 1 :]
            column += 1
    return lines
