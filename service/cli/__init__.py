"""The command ``lowfirst``: one file a command."""

from __future__ import annotations

import sys

import typer

from service.cli import bench, calibrate, classify, deploy, evaluate, models, publish, quantise, report, serve, train
from service.cli.console import errors
from service.errors import LowfirstError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Image classification that spends compute only where an image needs it.",
)
for command in (serve, deploy, classify, train, calibrate, quantise, evaluate, report, publish, models, bench):
    app.command()(getattr(command, command.__name__.rpartition(".")[2]))


@app.callback()
def version_option() -> None:
    """Give the group its help."""


def main() -> None:
    """Run the command line; our own errors become one line, and status 1."""
    try:
        app(prog_name="lowfirst")
    except LowfirstError as error:
        errors.print(f"error: {error.message}", style="red", highlight=False, markup=False, emoji=False, soft_wrap=True)
        sys.exit(1)
