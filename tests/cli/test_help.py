"""What ``--help`` prints is what stands in the code: brackets are no markup."""

from __future__ import annotations

import re

import pytest
import typer
from typer.testing import CliRunner

import service
from service.cli import app

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def squeezed(text: str) -> str:
    """Without line breaks, frames and blanks."""
    return re.sub(r"[\s│╭╮╰╯─]+", "", text)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_default_that_it_states(name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    printed = squeezed(CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output)
    for option in command.params:
        for stated in re.findall(r"\[default: [^\]]*\]", (getattr(option, "help", None) or "").replace("\\[", "[")):
            assert squeezed(stated) in printed, f"{option.name}: {stated}"


def test_version_is_the_packages() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"lowfirst {service.__version__}\n"
