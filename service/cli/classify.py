"""``lowfirst classify``."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from service.cli.console import AsJson, errors, output
from service.errors import LowfirstError
from service.settings import Settings, load_settings


def classify(
    photographs: Annotated[list[Path], typer.Argument(help="Photographs.")],
    model: Annotated[str | None, typer.Option(help="Model of the store. \\[default: LOWFIRST_MODEL]")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="\\[default: the model's]")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels to give.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Classify photographs without a server: the same engine, the same answers."""
    settings = load_settings({} if model is None else {"model": model})
    answers = asyncio.run(_classify(settings, photographs, threshold, top_k))
    if as_json:
        output.print_json(json.dumps(answers))
    else:
        _print(answers)
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
            except (LowfirstError, OSError) as error:
                answers.append({"file": str(path), "error": str(error)})
    finally:
        await models.close()
    return answers


def _print(answers: list[dict[str, Any]]) -> None:
    table = Table("file", "label", "score", "exit", "confidence", "M multiply-adds")
    for answer in answers:
        if "error" in answer:
            errors.print(
                f"{answer['file']}: {answer['error']}", style="red", highlight=False, markup=False, soft_wrap=True
            )
            continue
        table.add_row(
            escape(answer["file"]),
            escape(answer["label"]),
            f"{answer['score']:.3f}",
            answer["exit"],
            f"{answer['confidence']:.3f}",
            f"{answer['mmacs']:.1f}",
        )
    if table.row_count:
        output.print(table)
