"""``lowfirst report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import Data, Device, Precision, Workers, model_folder, output, progress


def report(
    runs: Annotated[list[str], typer.Argument(help="Run folders, or models of the store by name or name/version.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the page and its pictures.")],
    split: Annotated[str, typer.Option(help="Folder of --data to measure on.")] = "val",
    limit: Annotated[int | None, typer.Option(help="Look at so many photographs only.")] = None,
    device: Device = "auto",
    precision: Precision = "float32",
    workers: Workers = None,
) -> None:
    """Compare runs with each other and with the paper: one HTML page, its figures as PNG."""
    from service.evaluation.report import report as write

    folders = [model_folder(reference) for reference in runs]
    with progress("passes") as show:
        page = write(folders, data, out, split, limit, device, precision, workers, show)
    output.print(f"wrote {page}", highlight=False, markup=False, soft_wrap=True)
