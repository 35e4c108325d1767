"""``lowfirst bench``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from service.cli.console import AsJson, Device, Precision, Runtime, model_folder, output

if TYPE_CHECKING:
    from service.evaluation.throughput import Arrangement
    from service.inference.latency import LatencyTable, Stage
    from service.inference.predictor import Predictor


def bench(
    model: Annotated[str, typer.Argument(help="Run folder, or model of the store by name or name/version.")],
    device: Device = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    escalated: Annotated[float, typer.Option(min=0, max=1, help="Share of images that get the high pass.")] = 0.35,
    save: Annotated[Path | None, typer.Option(help="Write the times there, for LOWFIRST_PROFILE.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time both passes at every batch size, and find the best number of workers: what this machine can do."""
    from service.errors import DataError
    from service.evaluation.throughput import arrange, peak, tabulate
    from service.inference.device import cores
    from service.inference.predictor import Predictor

    folder = model_folder(model)

    def load(threads: int) -> Predictor:
        return Predictor.load(folder, device, precision, runtime, threads)

    predictor = load(1)
    if not predictor.is_multi_scale:
        raise DataError(f"{predictor.spec.architecture.network} is single-scale: it has no two passes", field="model")
    workers = cores() if predictor.device.type == "cpu" else 1
    table = tabulate(predictor, workers)
    most = peak(predictor, workers)
    size = table.best_size("low", max(table.low))
    arrangements = arrange(load, workers, size, escalated)
    if save is not None:
        table.write(save)
    if as_json:
        output.print_json(
            json.dumps(
                {
                    "latency": asdict(table),
                    "peak_multiply_adds_per_second": most,
                    "arrangements": [asdict(arrangement) for arrangement in arrangements],
                }
            )
        )
    else:
        output.print(_times(predictor, table, workers, most))
        output.print(_arrangements(arrangements, size, escalated))


def _times(predictor: Predictor, table: LatencyTable, workers: int, most: float) -> Table:
    """Each pass at each batch size; rates are of all workers together."""
    spec = predictor.spec
    shown = Table(
        "pass", "batch", "ms", "images/s", "G multiply-adds/s", "% of peak",
        title=f"{spec.name}: {predictor.runtime} {predictor.precision}, {workers} x {predictor.threads} threads, "
        f"peak {most / 1e9:.0f} G multiply-adds/s (matrix products)",
    )  # fmt: skip
    stages: tuple[tuple[Stage, float], ...] = (("low", spec.low_mmacs), ("high", spec.high_mmacs))
    for stage, mmacs in stages:
        times = table.low if stage == "low" else table.high
        best = table.best_size(stage, max(times))
        for size, seconds in times.items():
            rate = workers * size / seconds
            shown.add_row(
                stage, f"{size}{' *' if size == best else ''}", f"{1e3 * seconds:.2f}", f"{rate:.0f}",
                f"{rate * mmacs / 1e3:.1f}", f"{100 * rate * mmacs * 1e6 / most:.0f}",
            )  # fmt: skip
    shown.caption = "* the batch size that the server will use"
    return shown


def _arrangements(arrangements: list[Arrangement], size: int, escalated: float) -> Table:
    shown = Table(
        "workers x threads", "images/s",
        title=f"both passes on decoded images, batches of {size}, {100 * escalated:.0f} % escalated",
    )  # fmt: skip
    for arrangement in arrangements:
        shown.add_row(f"{arrangement.workers} x {arrangement.threads}", f"{arrangement.images_per_second:.0f}")
    return shown
