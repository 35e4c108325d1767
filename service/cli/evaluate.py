"""``lowfirst evaluate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from service.cli.console import (
    AsJson,
    Device,
    FromLog,
    Precision,
    Workers,
    model_folder,
    name_unreadable,
    next_step,
    one_source,
    output,
    progress,
    say,
)
from service.log import logger

if TYPE_CHECKING:
    from service.evaluation.evaluate import Evaluation

SHOWN = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


def evaluate(
    model: Annotated[str, typer.Argument(help="Run folder, or model of the store by name or name/version.")],
    data: Annotated[Path | None, typer.Option(help="Folder with train/<class>/ and val/<class>/ photographs.")] = None,
    split: Annotated[str, typer.Option(help="Folder of --data to measure on.")] = "val",
    device: Device = "auto",
    precision: Precision = "auto",
    runtime: Annotated[
        Literal["auto", "eager", "openvino", "cuda"] | None,
        typer.Option(help="auto: the fastest installed one. [default: eager; with int8 openvino]"),
    ] = None,
    compare: Annotated[bool, typer.Option(help="Also compare every runtime with eager float32.")] = False,
    from_log: FromLog = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy, exit rate and mean multiply-adds for each threshold; with --from-log over time."""
    from service.evaluation.evaluate import compare as compare_runtimes
    from service.evaluation.evaluate import evaluate as measure
    from service.evaluation.evaluate import seen_in_training
    from service.inference.predictor import Predictor

    photographs = one_source(data, from_log)
    folder = model_folder(model)
    if photographs is None:
        _show_history(folder, str(from_log), as_json)
        return
    data = photographs
    by = runtime or ("openvino" if precision == "int8" else "eager")
    predictor = Predictor.load(folder, device, precision, by)
    seen = seen_in_training(folder, data, split) if split != "train" else 0
    if seen:
        logger.warning("%d photographs of %s/ were used in training: accuracy on new ones will be lower", seen, split)
    with progress("evaluating") as show:
        evaluation = measure(predictor, data, split, workers, show)
    if compare:
        with progress("comparing runtimes") as show:
            points = compare_runtimes(folder, data, split, device, workers, show)
        evaluation = replace(evaluation, runtimes=points)
    if predictor.spec.version == 0:
        evaluation.write(folder)
    name_unreadable(evaluation.unreadable)
    if as_json:
        typer.echo(evaluation.to_json(), nl=False)
    else:
        _print(evaluation)
        if predictor.spec.version:
            next_step("serve", "--model", predictor.spec.name)
        else:
            next_step("publish", model, "--name", "NAME")


def _show_history(folder: Path, where: str, as_json: bool) -> None:
    from service.evaluation.history import history

    found = history(folder, where)
    if as_json:
        typer.echo(found.to_json(), nl=False)
        return
    table = Table(
        found.by, "images", "exit %", "mean M", "labelled", "top-1 %", "95 %", "drawn", "agree %",
        title=f"{found.model}: answers in {found.log}, UTC",
        caption="labelled: images with feedback; if they are a random sample, top-1 holds for all images. "
        "drawn: images that ran every stage",
    )  # fmt: skip
    for period in (*found.periods, found.total):
        table.add_row(
            period.begin.removesuffix("+00:00") or "all",
            str(period.images),
            _percent(period.exit_rate),
            "-" if period.mean_mmacs is None else f"{period.mean_mmacs:.1f}",
            str(period.labelled),
            _percent(period.accuracy),
            f"{_percent(period.at_least)} to {_percent(period.at_most)}",
            str(period.drawn),
            _percent(period.agreement),
        )
    output.print(table)


def _percent(share: float | None) -> str:
    """Per cent, or a dash if unknown."""
    return "-" if share is None else f"{100 * share:.1f}"


def _print(evaluation: Evaluation) -> None:
    table = Table(
        "threshold", "exit %", "mean M", "top-1 %",
        title=f"{evaluation.model}: {evaluation.images} photographs, {evaluation.runtime} {evaluation.precision}",
        caption="* default threshold. exit: images that exit before the last stage. mean M: mean million multiply-adds "
        "per image. top-1: right answers.",
    )  # fmt: skip
    points = {point.threshold: point for point in evaluation.curve if point.threshold in SHOWN}
    points[evaluation.default.threshold] = evaluation.default
    for threshold, point in sorted(points.items()):
        table.add_row(
            f"{threshold:g}" + (" *" if threshold == evaluation.default.threshold else ""),
            f"{100 * point.exit_rate:.1f}",
            f"{point.mean_mmacs:.1f}",
            f"{100 * point.accuracy:.2f}",
        )
    output.print(table)
    if evaluation.runtimes:
        output.print(_runtimes(evaluation))
    if evaluation.promises:
        output.print(_promises(evaluation))
        for promise in evaluation.promises:
            if promise.why_not:
                say(promise.why_not)
    alone = [f"{name} alone {100 * accuracy:.2f} %" for name, accuracy in evaluation.stages.items()]
    say("; ".join([*alone, f"all agree on {100 * evaluation.agreement:.2f} %"]))


def _runtimes(evaluation: Evaluation) -> Table:
    shown = Table("runtime", "threshold", "exit %", "top-1 %", "same answer as eager float32 %", title="every runtime")
    for point in evaluation.runtimes:
        shown.add_row(
            f"{point.runtime} {point.precision}",
            f"{point.threshold:g}",
            f"{100 * point.exit_rate:.1f}",
            f"{100 * point.accuracy:.2f}",
            f"{100 * point.agreement:.2f}",
        )
    return shown


def _promises(evaluation: Evaluation) -> Table:
    shown = Table(
        "promise", "threshold", "exit %", "measured %", "kept", "broken %",
        title="promises of the calibration table, tested on these photographs",
        caption="broken: probability that another calibration with as many images breaks the promise; at most 5 %",
    )  # fmt: skip
    for promise in evaluation.promises:
        asked = f"{promise.goal} {promise.value:g}"
        if promise.threshold is None or promise.exit_rate is None:
            shown.add_row(asked, "too few images")
            continue
        shown.add_row(
            asked,
            f"{promise.threshold:g}",
            f"{100 * promise.exit_rate:.1f}",
            f"{100 * (promise.measured or 0):.2f}",
            "yes" if promise.is_kept else "no",
            f"{100 * (promise.broken or 0):.1f}",
        )
    return shown
