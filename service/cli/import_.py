"""``lowfirst import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import model_store, next_step, say
from service.errors import DataError


def import_(
    network: Annotated[str, typer.Argument(help="Single-scale network, see `lowfirst models --architectures`.")],
    name: Annotated[str, typer.Option(help="Model's name in the store.")],
    weights: Annotated[
        str, typer.Option(help="torchvision, efficientnet-lite0, or a file with such weights.")
    ] = "torchvision",
    resolution: Annotated[
        int | None, typer.Option(min=32, help="Input size in pixels. [default: that of the published weights]")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="File with one label per line. [default: the 1,000 of ImageNet]")
    ] = None,
) -> None:
    """Add a network with published weights to the store, without training."""
    from service.evaluation.pretrained import Source, import_pretrained

    store = model_store()
    source = Source(network, weights, resolution, None if labels is None else _lines(labels))
    spec = import_pretrained(source, store, name)
    say(f"imported {store.root / spec.reference}; `lowfirst serve --model {spec.name}` serves it as it is")
    half = f"{spec.name}@{spec.preprocessing.crop // 2}"
    next_step("compose", f"{spec.name}-cascade", "--stage", half, "--stage", spec.name)


def _lines(path: Path) -> list[str]:
    """Raises DataError if it cannot be read."""
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"labels {str(path)!r} cannot be read: {error}", field="labels", value=str(path)) from error
