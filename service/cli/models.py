"""``lowfirst models``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.console import AsJson, columns, model_store, next_step, progress, say, warn
from service.errors import LowfirstError
from service.settings import load_settings

if TYPE_CHECKING:
    from service.evaluation.architectures import Footprint

CLASSES = 1000
LEGEND = """px: side of an image in pixels; first M, last M: million multiply-adds of the first and the last stage;
default: threshold that a server starts with here. Any picture gets one of a model's labels: none can say
"none of these".""".replace("\n", " ")


def models(
    architectures: Annotated[bool, typer.Option("--architectures", help="List networks instead of the store.")] = False,
    time: Annotated[
        bool,
        typer.Option("--time", help="With --architectures: time every network on this machine (takes some minutes)."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the models of the store, or every network with its cost in millions of multiply-adds."""
    if architectures:
        _list_networks(time, as_json)
        return
    rows = _stored()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        store = model_store()
        say(f"{store.root} holds no model")
        if not store.root.is_dir():
            warn("there is no such folder (LOWFIRST_MODEL_STORE)")
        return
    _print([_short(row) for row in rows])
    say(LEGEND)
    next_step("serve", "--model", rows[-1]["name"])


def _print(rows: list[dict[str, Any]]) -> None:
    columns([*rows[0]], [[_shown(each) for each in row.values()] for row in rows])


def _shown(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _list_networks(timed: bool, as_json: bool) -> None:
    """As JSON every network by its name, as a table every base network."""
    from service.evaluation.architectures import footprint, measured_with
    from service.networks.registry import BACKBONES, names

    found = {}
    with progress("networks") as show:
        for name in BACKBONES:
            found[name] = footprint(name, timed)
            show(1, len(BACKBONES))
    if as_json:
        typer.echo(json.dumps([_network_row(name, found) for name in names()], indent=1))
        return
    _print([_backbone_row(each) for each in found.values()])
    lines = [
        "NAME trains at one scale; ms_NAME at two: low at half the resolution, high at full; ms3_NAME at three.",
        "M: millions, of parameters, and of multiply-adds per image.",
    ]
    if timed:
        lines += [
            f"ms: milliseconds per image, {measured_with()}.",
            "even: break-even exit rate; if more images exit early, two scales are faster than one.",
        ]
    for line in lines:
        say(line)
    next_step("train", "ms_resnet18", "--data", "DIR", "--out", "runs/first")


def _network_row(name: str, found: Mapping[str, Footprint]) -> dict[str, Any]:
    """A network of several stages is as many copies of the base network; a single-scale one costs 0 before its last."""
    from service.networks.cost import cost
    from service.networks.registry import backbone_name, depth

    each, stages = found[backbone_name(name)], depth(name)
    quarter = 0.0 if stages < 3 else cost(each.name, CLASSES, each.resolution // 4)[0]
    row: dict[str, Any] = {
        "name": name,
        "resolution": each.resolution,
        "stages": stages,
        "low_mmacs": {1: 0.0, 2: each.low_mmacs, 3: quarter}[stages],
        "high_mmacs": each.high_mmacs,
        "parameters": stages * each.parameters,
    }
    if each.high_ms is not None:
        row["low_ms"] = each.low_ms if stages > 1 else 0.0
        row["high_ms"] = each.high_ms
        row["break_even"] = each.break_even if stages > 1 else None
    return row


def _backbone_row(each: Footprint) -> dict[str, Any]:
    row: dict[str, Any] = {
        "network": each.name,
        "params M": each.parameters / 1e6,
        "pixels": each.resolution,
        "low M": each.low_mmacs,
        "high M": each.high_mmacs,
    }
    if each.break_even is not None:
        row |= {"low ms": each.low_ms, "high ms": each.high_ms, "even %": round(100 * each.break_even)}
    return row


def _stored() -> list[dict[str, Any]]:
    from service.inference.device import choose_device, choose_precision
    from service.inference.runtimes import choose_runtime

    settings = load_settings()
    device = choose_device(settings.device)
    by, what = choose_runtime(settings.runtime, device), choose_precision(settings.precision, device)
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
            "default_threshold": spec.start_threshold(by, what),
            "dataset": spec.dataset,
        }
        for spec in model_store().specs(_name_broken)
    ]


def _name_broken(reference: str, error: LowfirstError) -> None:
    warn(f"{reference} is left out: {error.message}")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """What of a stored model fits a terminal of 80 columns."""
    return {
        "model": f"{row['name']}/{row['version']}",
        "network": row["network"],
        "px": row["resolution"],
        "first M": row["low_mmacs"],
        "last M": row["high_mmacs"],
        "default": row["default_threshold"],
    }
