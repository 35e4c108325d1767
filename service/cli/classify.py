"""``lowfirst classify``."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.console import AsJson, columns, next_step, output, warn
from service.cli.starting import bar
from service.errors import LowfirstError
from service.settings import Settings, load_settings


def classify(
    photographs: Annotated[list[Path], typer.Argument(help="Photographs.")],
    model: Annotated[str | None, typer.Option(help="Model of the store. [default: LOWFIRST_MODEL]")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Confidence above which an image exits early; 1: never. [default: that of the model]"
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of labels; all if the model has fewer.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Classify photographs without a server, with the same engine and the same answers."""
    settings = load_settings({} if model is None else {"model": model})
    with bar(len(settings.models) + 1):
        answers = asyncio.run(_classify(settings, photographs, threshold, top_k))
    if as_json:
        output.print_json(json.dumps(answers))
    else:
        _print(answers)
        next_step("serve", *([] if model is None else ["--model", model]))
    if any("error" in answer for answer in answers):
        raise typer.Exit(1)


async def _classify(
    settings: Settings, photographs: list[Path], threshold: float | None, top_k: int
) -> list[dict[str, Any]]:
    from service.api.answers import fields_of
    from service.app import build_parts
    from service.engine.answer import Ask

    models = build_parts(settings).models
    await models.start()
    answers: list[dict[str, Any]] = []
    try:
        for path in photographs:
            try:
                ask = Ask(arrival=time.monotonic(), threshold=threshold, top_k=top_k)
                fields = fields_of(await models.find(None).classify(path.read_bytes(), ask), "")
                del fields["request_id"], fields["config_version"]  # of servers
                answers.append({"file": str(path), **fields})
            except LowfirstError as error:
                answers.append({"file": str(path), "error": error.message})
            except OSError as error:
                answers.append({"file": str(path), "error": error.strerror or str(error)})
    finally:
        await models.close()
    return answers


def _print(answers: list[dict[str, Any]]) -> None:
    rows = []
    for answer in answers:
        if "error" in answer:
            warn(f"{answer['file']}: {answer['error']}", "red")
            continue
        numbers = f"{answer['score']:.3f}", answer["exit"], f"{answer['confidence']:.3f}", f"{answer['mmacs']:.1f}"
        rows.append((answer["file"], answer["label"], *numbers))
    if rows:
        columns(("file", "label", "score", "exit", "confidence", "M multiply-adds"), rows)
