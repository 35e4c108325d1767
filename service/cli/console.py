"""Shared by commands: output, progress, and finding a model."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.errors import InvalidOption, NotFound
from service.model_spec import SPEC
from service.store import ModelStore

output = Console()
errors = Console(stderr=True)

Data = Annotated[Path, typer.Option(help="Folder with train/<class>/ and val/<class>/ photographs.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16", "float16", "int8"],
    typer.Option(help="float16: only on CUDA; int8: only with OpenVINO, after `lowfirst quantise`."),
]
EagerPrecision = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="float16: only on CUDA.")
]
Runtime = Annotated[Literal["auto", "eager", "openvino", "cuda"], typer.Option(help="auto: the fastest installed one.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that decode. [default: one per core]")]
FromLog = Annotated[
    str | None, typer.Option(metavar="DIR", help="A server's sample log (LOWFIRST_SAMPLE_LOG) instead of --data.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def one_source(data: Path | None, from_log: str | None) -> Path | None:
    """The photographs of --data, None with --from-log. Raises InvalidOption unless exactly one is given."""
    if data is not None and from_log is not None:
        raise InvalidOption("from_log", from_log, "absent if --data is given")
    if data is None and from_log is None:
        raise InvalidOption("data", None, "a folder of photographs; or --from-log DIR names a server's sample log")
    return data


def say(text: str) -> None:
    """Print ``text`` as it is, never cut."""
    output.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


def warn(text: str, style: str = "yellow") -> None:
    """The same on standard error."""
    errors.print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


def next_step(*command: str | Path, done: str = "", **variables: str | Path) -> None:
    """Print what is ``done``, and the next command, quoted for a shell."""
    settings = [f"{name}={shlex.quote(str(value))}" for name, value in variables.items()]
    following = " ".join(["next:", *settings, shlex.join(["lowfirst", *map(str, command)])])
    say(f"{done}; {following}" if done else following)


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose cells are never cut, for copying and piping. Numbers are right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    are_numbers = [all(_is_number(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, are_numbers, strict=True)
        ]
        say("  ".join(cells).rstrip())


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).removeprefix("-").isdecimal() or cell == "-"


def model_store() -> ModelStore:
    """The store named by the environment. Raises InvalidOption if any setting is out of bounds."""
    from service.settings import load_settings

    return ModelStore(load_settings().model_store)


def model_folder(reference: str) -> Path:
    """A run folder, or a model of the store by ``name`` or ``name/version``, verified if ``LOWFIRST_MODEL_KEY`` is set.

    Raises:
        NotFound: there is none.
        BrokenModel, InvalidOption: see ``signing.verify``.
    """
    from service.settings import load_settings

    folder, settings = unverified_folder(reference), load_settings()
    if settings.model_key is not None and settings.model_store.resolve() in folder.resolve().parents:
        from service.signing import verify

        verify(folder, settings.model_key)
    return folder


def unverified_folder(reference: str) -> Path:
    """The same without checking its signature."""
    path = Path(reference)
    if (path / SPEC).is_file():
        return path
    store = model_store()
    if reference.partition("/")[0] not in store.names():
        raise NotFound(
            f"model is {reference!r}; it is not a run folder, and {store.holds()}", field="model", value=reference
        )
    return store.find(reference)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; call the result with (just done, total)."""
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*shown, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total)


def is_first_process() -> bool:
    """Whether this process is the one of a ``torchrun`` group that prints."""
    return os.environ.get("RANK", "0") == "0"


def name_unreadable(files: tuple[str, ...]) -> None:
    """List (the first) unreadable files, and their number."""
    if files:
        listed = "\n  ".join(files[:20])
        more = f"\n  … and {len(files) - 20} more" if len(files) > 20 else ""
        warn(f"{len(files)} unreadable, left out:\n  {listed}{more}")
