"""``lowfirst report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import Data, Device, EagerPrecision, Workers, model_folder, progress, say


def report(
    runs: Annotated[list[str], typer.Argument(help="Run folders, or models of the store by name or name/version.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the page and its pictures.")],
    split: Annotated[str, typer.Option(help="Folder of --data to measure on.")] = "val",
    limit: Annotated[int | None, typer.Option(help="Use only this many photographs.")] = None,
    device: Device = "auto",
    precision: EagerPrecision = "float32",
    workers: Workers = None,
) -> None:
    """Compare runs with each other and with the paper, as one HTML page with figures as PNG."""
    from service.evaluation.report import report as write

    folders = [model_folder(reference) for reference in runs]
    with progress("passes") as show:
        page = write(folders, data, out, split, limit, device, precision, workers, show)
    say(f"wrote {page}")
    say(f"next: open {page.resolve().as_uri()} in a browser")
