"""``lowfirst bench``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from service.cli.console import AsJson, Device, Precision, Runtime, model_folder, next_step, output, say
from service.errors import InvalidOption

if TYPE_CHECKING:
    from service.evaluation.throughput import Arrangement
    from service.inference.latency import LatencyTable
    from service.inference.predictor import Predictor


def bench(
    model: Annotated[str, typer.Argument(help="Run folder, or model of the store by name or name/version.")],
    device: Device = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    escalated: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of images that escalate. [default: that of the model at its default threshold]"
        ),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Cost of one worker (a core or a GPU) per hour.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the times to this file, for LOWFIRST_PROFILE.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time every stage at every batch size, and say whether the cascade pays on this machine."""
    from service.evaluation.pays import Payoff, payoff
    from service.evaluation.peak import peak
    from service.evaluation.throughput import arrange, measure_together
    from service.inference.device import cores
    from service.inference.latency import LatencyProfile
    from service.inference.predictor import Predictor

    folder = model_folder(model)
    if save is not None and (save.is_dir() or not save.parent.is_dir()):  # reported before minutes of measuring
        raise InvalidOption("save", str(save), "a file in a folder that exists")

    def load(threads: int) -> Predictor:
        return Predictor.load(folder, device, precision, runtime, threads)

    predictor = load(1)
    workers = cores() if predictor.device.type == "cpu" else 1
    table = measure_together(predictor, workers)
    most = peak(predictor, workers)
    verdict: Payoff = payoff(predictor, table, escalated, price_per_hour)
    size = table.best_size(0, max(table.stages[0]))
    arrangements = arrange(load, workers, size, verdict.reaching)
    if save is not None:
        LatencyProfile.of(predictor, table).write(save)
    if as_json:
        output.print_json(
            json.dumps(
                {
                    "latency": asdict(table),
                    "pays": asdict(verdict),
                    "peak_multiply_adds_per_second": most,
                    "arrangements": [asdict(arrangement) for arrangement in arrangements],
                }
            )
        )
        return
    output.print(_times(predictor, table, workers, most))
    output.print(_arrangements(arrangements, size, verdict.reaching))
    say(verdict.told())
    if save is None:
        next_step("bench", model, "--save", "profile.json")
    else:
        next_step("serve", "--model", model, LOWFIRST_PROFILE=save)


def _times(predictor: Predictor, table: LatencyTable, workers: int, most: float) -> Table:
    """Each stage at each batch size, compared with the single-scale network; rates cover all workers together."""
    spec = predictor.spec
    shown = Table(
        "stage", "batch", "ms", "images/s", "G/s", "% of peak",
        title=f"{spec.name}: {predictor.runtime} {predictor.precision}, {workers} x {predictor.threads} threads",
        caption="G/s: thousand million multiply-adds per second; "
        f"peak: {most / 1e9:.0f}, measured with matrix products in the same runtime, precision and threads",
    )  # fmt: skip
    rows = [(stage.name, stage.mmacs, times) for stage, times in zip(spec.stages, table.stages, strict=True)]
    for name, mmacs, times in [*rows, ("single-scale network", spec.single_scale_mmacs, table.single)]:
        for size, seconds in times.items():
            rate = workers * size / seconds
            shown.add_row(
                name, str(size), f"{1e3 * seconds:.2f}", f"{rate:.0f}",
                f"{rate * mmacs / 1e3:.1f}", f"{100 * rate * mmacs * 1e6 / most:.0f}",
            )  # fmt: skip
    return shown


def _arrangements(arrangements: list[Arrangement], size: int, reaching: Sequence[float]) -> Table:
    shown = Table(
        "workers x threads", "images/s",
        title=f"all stages on decoded images, batches of {size}; reach each stage: "
        + ", ".join(f"{100 * share:.0f} %" for share in reaching),
    )  # fmt: skip
    for arrangement in arrangements:
        shown.add_row(f"{arrangement.workers} x {arrangement.threads}", f"{arrangement.images_per_second:.0f}")
    return shown
