"""``lowfirst compose``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.console import model_folder, model_store, next_step
from service.errors import InvalidOption
from service.model_spec import SPEC

if TYPE_CHECKING:
    from service.evaluation.compose import Part


def compose(
    name: Annotated[str, typer.Argument(help="Name of the cascade in the store.")],
    stage: Annotated[
        list[str],
        typer.Option(
            help="MODEL or MODEL@PIXELS, cheapest first: a model of the store or a run folder, with all its stages; "
            "the last one at PIXELS."
        ),
    ],
) -> None:
    """Make a cascade without training, from models with the same classes or from one model at several sizes."""
    from service.evaluation.compose import compose as put

    store = model_store()
    spec = put([_part(each) for each in stage], store, name)
    stages = ", ".join(f"{each.name} {each.mmacs:.1f}" for each in spec.stages)
    done = f"composed {store.root / spec.name / str(spec.version)} of {stages} million multiply-adds"
    next_step("calibrate", spec.reference, "--data", "DIR", done=done)


def _part(asked: str) -> Part:
    """Raises InvalidOption if pixels are not a number, NotFound for an unknown model."""
    from service.evaluation.compose import Part

    reference, at, pixels = asked.rpartition("@")
    if not at or (Path(asked) / SPEC).is_file():
        return Part(asked, model_folder(asked))
    if not (reference and pixels.isdecimal() and pixels.isascii() and int(pixels)):
        raise InvalidOption("stage", asked, "MODEL or MODEL@PIXELS, pixels a whole number above 0")
    return Part(asked, model_folder(reference), int(pixels))
