"""The command itself, and what it left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.cli import main
from service.cli.console import output


@pytest.fixture(autouse=True, scope="session")
def _wide_tables() -> None:
    """Tables fit, whatever terminal the tests run in."""
    output.width = 200


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def lowfirst(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Done]:
    """``lowfirst(*arguments)`` runs the command in this process, as its entry point does, with an empty store."""
    for name, value in {
        "MODEL_STORE": str(tmp_path / "store"),
        "DEVICE": "cpu",
        "PRECISION": "float32",
        "RUNTIME": "eager",
    }.items():
        monkeypatch.setenv(f"LOWFIRST_{name}", value)

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["lowfirst", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        captured = capsys.readouterr()
        return Done(ended.value.code, captured.out, captured.err)

    return run
