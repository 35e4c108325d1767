"""``lowfirst publish``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import model_store, output


def publish(
    run: Annotated[Path, typer.Argument(help="Calibrated and evaluated run folder.")],
    name: Annotated[str, typer.Option(help="Model's name in the store.")],
) -> None:
    """Put a run into the model store as the next version of a model, with its card and curve."""
    from service.evaluation.publish import publish as put

    store = model_store()
    spec = put(run, store, name)
    output.print(
        f"published {store.root / spec.name / str(spec.version)}; serve it with LOWFIRST_MODEL={spec.name}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
