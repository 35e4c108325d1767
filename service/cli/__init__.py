"""The command ``lowfirst``: one file a command."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import service
from service.cli import (
    bench,
    calibrate,
    classify,
    compose,
    deploy,
    evaluate,
    import_,
    models,
    publish,
    quantise,
    report,
    serve,
    sign,
    train,
)
from service.cli.console import errors
from service.errors import LowfirstError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Image classification that spends compute only where an image needs it.",
)
for command in (
    serve, deploy, classify, train, calibrate, quantise, evaluate, report, publish, sign, compose, models, bench,
):  # fmt: skip
    app.command()(getattr(command, command.__name__.rpartition(".")[2]))
app.command("import")(import_.import_)


# Threads that compute a layer together wait for each other at its end. By default they spin, and where anything else
# runs, the one that is waited for has no core: beside other work, training was 6 to 18 times as fast without.
# A server has one thread per worker, which waits for none.
WAITING = ("train", "calibrate", "quantise", "evaluate", "report")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"lowfirst {service.__version__}")
        raise typer.Exit


@app.callback()
def before_any(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set what PyTorch reads as it is loaded, which is later."""
    if context.invoked_subcommand in WAITING:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    """Run the command line; our own errors become one line, and status 1."""
    try:
        app(prog_name="lowfirst")
    except LowfirstError as error:
        errors.print(f"error: {error.message}", style="red", highlight=False, markup=False, emoji=False, soft_wrap=True)
        sys.exit(1)
