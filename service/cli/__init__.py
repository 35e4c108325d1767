"""The command ``lowfirst``: one file per command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

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
from service.cli.console import warn
from service.errors import LowfirstError
from service.log import flush

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # otherwise option names are cut on a terminal with 80 columns
    help="Image classification that spends compute only where an image needs it.",
)


def add(name: str, command: Callable[..., None]) -> None:
    """Add a command; the list of commands shows the first paragraph of its docstring."""
    first, *_ = (command.__doc__ or "").partition("\n\n")
    app.command(name, short_help=" ".join(first.split()))(command)


for command in (
    serve, deploy, classify, train, calibrate, quantise, evaluate, report,
    publish, sign, import_, compose, models, bench,
):  # fmt: skip
    add(command.__name__.rpartition(".")[2].rstrip("_"), vars(command)[command.__name__.rpartition(".")[2]])


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
    """Set variables that PyTorch reads when it is loaded later."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    if context.invoked_subcommand in WAITING:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    """Run the command line. Errors are one line each: usage errors have status 2, our own and the system's 1."""
    try:
        sys.exit(app(prog_name="lowfirst", standalone_mode=False) or 0)
    except LowfirstError as error:
        end(error.message, 1)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        usage = f" {context.get_usage()}; see `{context.command_path} --help`" if context is not None else ""
        end(f"{error.format_message().rstrip('.')}.{usage}", error.exit_code)
    except typer.Abort:
        end("aborted", 1)
    except OSError as error:  # a folder without write access, a full disk
        if error.strerror is None:
            raise
        named = f"{error.filename}: " if error.filename is not None else ""
        end(f"{named}{error.strerror}", 1)


def end(message: str, status: int) -> NoReturn:
    """Print an error in one line, and exit with ``status``."""
    flush()  # the reason is the last line
    warn(f"error: {' '.join(message.split())}", "red")
    sys.exit(status)
