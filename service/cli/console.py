"""What commands share: where they print, how they show progress, how they find a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

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
Precision = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 (CUDA), or int8 (quantised models).")]
Runtime = Annotated[str, typer.Option(help="auto, eager, openvino or cuda; auto: the fastest that is installed.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that decode. \\[default: one a core]")]
FromLog = Annotated[
    str | None, typer.Option(metavar="DIR", help="A server's sample log (LOWFIRST_SAMPLE_LOG) instead of --data.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def one_source(data: Path | None, from_log: str | None) -> Path | None:
    """The photographs of --data, None where there is --from-log. Raises InvalidOption: not exactly one is given."""
    if data is not None and from_log is not None:
        raise InvalidOption("from_log", from_log, "left out where --data is given")
    if data is None and from_log is None:
        raise InvalidOption("data", None, "a folder of photographs; or --from-log DIR names a server's sample log")
    return data


def model_store() -> ModelStore:
    """The store that the environment names. Raises InvalidOption when any of its settings is out of bounds."""
    from service.settings import load_settings

    return ModelStore(load_settings().model_store)


def model_folder(reference: str) -> Path:
    """A run folder, or a model of the store by ``name`` or ``name/version``. Raises NotFound."""
    path = Path(reference)
    if (path / SPEC).is_file():
        return path
    store = model_store()
    known = store.names()
    if reference.partition("/")[0] not in known:
        found = ", ".join(known) or "no model"
        raise NotFound(
            f"model is {reference!r}; it is no run folder, and {store.root} has {found}", field="model", value=reference
        )
    return store.find(reference)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; call what it gives with (just done, in all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total)


def is_first_process() -> bool:
    """Whether this process is the one of a ``torchrun`` group that prints."""
    return os.environ.get("RANK", "0") == "0"


def name_unreadable(files: tuple[str, ...]) -> None:
    """Name (the first of) the files that could not be read, and count them."""
    if files:
        listed = "\n  ".join(files[:20])
        more = f"\n  … and {len(files) - 20} more" if len(files) > 20 else ""
        errors.print(
            f"{len(files)} unreadable, left out:\n  {listed}{more}",
            style="yellow",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
