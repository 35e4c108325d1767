"""``lowfirst calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from service.cli.console import Data, Device, Workers, output, progress

SHOWN = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


def calibrate(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained network.")],
    data: Data,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Fit temperatures and a default threshold on photographs held out of training, and certify thresholds."""
    from service.evaluation.calibrate import calibrate as fit_and_certify
    from service.inference.calibration import Calibration

    with progress("calibrating") as show:
        spec = fit_and_certify(run, data, device, workers, show)
    output.print(
        f"temperature low {spec.temperature.low:.3f}, high {spec.temperature.high:.3f}; "
        f"default threshold {spec.default_threshold:g}",
        highlight=False,
        soft_wrap=True,
    )
    for table in spec.calibration:
        calibration = Calibration(table, spec.low_mmacs, spec.high_mmacs)
        shown = Table(
            "threshold", "exit %", "mean M", "top-1 %", "agree %", "agree >= %", "drop <= %",
            title=f"{table.runtime} {table.precision}, {table.n} photographs, bounds at 95 %",
        )  # fmt: skip
        default = spec.start_threshold(table.runtime, table.precision)
        for threshold in sorted({*SHOWN, default}):
            effect = calibration.predict(threshold)
            shown.add_row(
                f"{threshold:g}" + (" *" if threshold == default else ""),
                f"{100 * effect.exit_rate:.1f}",
                f"{effect.mean_mmacs:.1f}",
                f"{100 * effect.accuracy:.1f}",
                f"{100 * effect.agreement:.1f}",
                f"{100 * effect.agreement_at_least:.1f}",
                f"{100 * effect.accuracy_drop_at_most:.1f}",
            )
        output.print(shown)
