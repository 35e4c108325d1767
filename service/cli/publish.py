"""``lowfirst publish``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import model_store, next_step


def publish(
    run: Annotated[Path, typer.Argument(help="Calibrated and evaluated run folder.")],
    name: Annotated[str, typer.Option(help="Model's name in the store.")],
) -> None:
    """Add a run to the model store as the next version of a model, with its card and curve."""
    from service.evaluation.publish import publish as put

    store = model_store()
    spec = put(run, store, name)
    next_step("serve", "--model", spec.name, done=f"published {store.root / spec.name / str(spec.version)}")
