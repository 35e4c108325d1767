"""``lowfirst calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from service.cli.console import Device, FromLog, Workers, model_folder, next_step, one_source, output, progress, say

SHOWN = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

LEGEND = (
    "* default threshold. exit: images that exit before the last stage. mean M: mean million multiply-adds per image. "
    "top-1: right answers. agree: same answer as the last stage. agree >=, drop <=: 95 % bounds of the agreement and "
    "of the correct answers lost."
)


def calibrate(
    model: Annotated[str, typer.Argument(help="Run folder, or model of the store by name or name/version.")],
    data: Annotated[Path | None, typer.Option(help="Folder with train/<class>/ and val/<class>/ photographs.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Folder of --data to use. [default: photographs held out of train/]")
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="--data is any folder of photographs: certify only the agreement.")
    ] = False,
    from_log: FromLog = None,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Fit temperatures and a default threshold on photographs not used in training, and certify thresholds.

    With --from-log it uses a server's sample log: no photographs are needed, and labels come from feedback.
    """
    from service.calibration.certify import Calibration
    from service.errors import InvalidOption
    from service.evaluation.calibrate import calibrate as fit_and_certify
    from service.evaluation.from_log import calibrate_from_log

    photographs = one_source(data, from_log)
    if split and (unlabelled or from_log):
        raise InvalidOption("split", split, "absent: --unlabelled and --from-log use all images")
    if photographs is None:
        spec = calibrate_from_log(model_folder(model), str(from_log))
    else:
        with progress("calibrating") as show:
            spec = fit_and_certify(model_folder(model), photographs, split, not unlabelled, device, workers, show)
    temperatures = ", ".join(f"{stage.name} {stage.temperature:.3f}" for stage in spec.stages)
    say(f"temperatures: {temperatures}; default threshold {spec.default_threshold:g}")
    for table in spec.calibration:
        calibration = Calibration(table, spec.mmacs)
        shown = Table(
            "threshold", "exit %", "mean M", "top-1 %", "agree %", "agree >= %", "drop <= %",
            title=f"{table.runtime} {table.precision}, {table.n} photographs, bounds at 95 %",
            caption=LEGEND,
        )  # fmt: skip
        default = spec.start_threshold(table.runtime, table.precision)
        for threshold in sorted({*SHOWN, default}):
            effect = calibration.predict(threshold)
            shown.add_row(
                f"{threshold:g}" + (" *" if threshold == default else ""),
                f"{100 * effect.exit_rate:.1f}",
                f"{effect.mean_mmacs:.1f}",
                _percent(effect.accuracy),
                f"{100 * effect.agreement:.1f}",
                f"{100 * effect.agreement_at_least:.1f}",
                _percent(effect.accuracy_drop_at_most),
            )
        output.print(shown)
    if photographs is not None and not unlabelled:
        next_step("evaluate", model, "--data", photographs)
    elif spec.version:
        next_step("serve", "--model", spec.name)
    else:
        next_step("publish", model, "--name", "NAME")


def _percent(share: float | None) -> str:
    """Per cent, or a dash without labels."""
    return "-" if share is None else f"{100 * share:.1f}"
