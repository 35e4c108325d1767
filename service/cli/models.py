"""``lowfirst models``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from service.cli.console import AsJson, errors, model_store, output
from service.errors import LowfirstError

CLASSES = 1000


def models(
    architectures: Annotated[bool, typer.Option("--architectures", help="List networks instead of the store.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the models of the store, or every network with its cost in millions of multiply-adds."""
    rows = _architectures() if architectures else _stored()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        output.print(f"{model_store().root} holds no model", highlight=False, markup=False, soft_wrap=True)
        return
    shown = rows if architectures else [_short(row) for row in rows]
    first, *others = (name.replace("_", " ") for name in shown[0])
    lines = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in shown]
    names = Column(first, min_width=max(len(name) for name, *_ in lines))  # to be copied, so whole
    table = Table(names, *others, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*line)
    output.print(table)
    if not architectures:
        output.print('Any picture at all gets one of a model\'s labels: none can say "none of these".', highlight=False)


def _architectures() -> list[dict[str, Any]]:
    """Costs at 1000 classes and the resolution that the paper quotes."""
    from service.networks.cost import cost
    from service.networks.registry import names, reference_resolution

    rows = []
    for name in names():
        resolution = reference_resolution(name)
        costs = cost(name, CLASSES, resolution)
        rows.append(
            {
                "name": name,
                "resolution": resolution,
                "stages": len(costs),
                "low_mmacs": costs[0],
                "high_mmacs": costs[-1],
            }
        )
    return rows


def _stored() -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            "version": spec.version,
            "network": spec.architecture.network,
            "classes": len(spec.classes),
            "resolution": spec.preprocessing.crop,
            "stages": [stage.name for stage in spec.stages],
            "low_mmacs": spec.mmacs[0],
            "high_mmacs": spec.mmacs[-1],
            "default_threshold": spec.default_threshold,
            "dataset": spec.dataset,
        }
        for spec in model_store().specs(_name_broken)
    ]


def _name_broken(reference: str, error: LowfirstError) -> None:
    errors.print(
        f"{reference} is left out: {error.message}", style="yellow", highlight=False, markup=False, soft_wrap=True
    )


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """What of a stored model fits a terminal of 80 columns."""
    return {
        "model": f"{row['name']}/{row['version']}",
        "network": row["network"],
        "pixels": row["resolution"],
        "first M": row["low_mmacs"],
        "last M": row["high_mmacs"],
        "threshold": row["default_threshold"],
    }
