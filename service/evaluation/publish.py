"""From a calibrated, evaluated run to a version in the model store, with its card and curve."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

from service.calibration.certify import Calibration
from service.errors import DataError
from service.evaluation import figures
from service.evaluation.calibrate import LOST_BY_DEFAULT
from service.evaluation.evaluate import Evaluation
from service.model_spec import ModelSpec
from service.networks.registry import backbone_name
from service.store import WEIGHTS, ModelStore, read_spec, read_weights, write_spec

CARD, CURVE = "README.md", "curve.png"
CARD_THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def publish(run: Path, store: ModelStore, name: str) -> ModelSpec:
    """Copy the run's model into ``store`` as the next version of ``name``, with a card and a curve.

    Raises:
        NotFound: no run there, or it was never evaluated.
        DataError: it was never calibrated, not evaluated since, or evaluated on its training photographs.
        BrokenModel: its weights do not match its spec.
        InvalidOption: ``name`` is not a valid model name.
    """
    spec = read_spec(run)
    read_weights(run, spec)
    if spec.default_threshold is None:
        raise DataError(f"{run} has no default threshold: run `lowfirst calibrate {run} --data DIR` first")
    evaluation = Evaluation.read(run)
    if evaluation.split == "train" or not evaluation.is_of(spec):
        reason = "was evaluated on train/" if evaluation.split == "train" else "has changed since it was evaluated"
        raise DataError(f"{run} {reason}: run `lowfirst evaluate {run} --data DIR` again")
    with store.new_version(name) as (version, folder):
        published = dataclasses.replace(spec, name=name, version=version)
        for file in (WEIGHTS, *spec.files):
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(run / file, folder / file)
        (folder / CARD).write_text(card(published, evaluation))
        draw_curve(published, evaluation, folder / CURVE)
        write_spec(folder, published)  # last: it is what makes the folder a model
    return published


def card(spec: ModelSpec, evaluation: Evaluation) -> str:
    """The model card, Markdown."""
    recipe = spec.recipe
    default = evaluation.default
    error = 100 * math.sqrt(default.accuracy * (1 - default.accuracy) / evaluation.images)
    return f"""# {spec.name}, version {spec.version}

{spec.architecture.network} at {" / ".join(map(str, spec.resolutions))} pixels, trained from
{recipe.get("init") or "scratch"} on {spec.dataset}. {_costs(spec)}

## Intended use and limits

The model knows {len(spec.classes)} classes: {", ".join(spec.classes)}.

**Any picture at all gets one of these labels.** The model has no way to say "none of these", and a high score on a
picture of something else means nothing. The test photographs are like the training photographs; expect lower accuracy
on others.

## Accuracy and cost

Measured on {evaluation.images} photographs of `{evaluation.split}/`, not used in training or calibration
({evaluation.runtime} runtime, {evaluation.precision}). Top-1 of each stage on all of them:
{_alone(evaluation)}. One standard error of the top-1 is {error:.1f} points.

| threshold | exit early, % | mean multiply-adds, M | relative to single-scale, % | top-1, % |
|---|---|---|---|---|
{_measured(spec, evaluation)}

![Top-1 against mean multiply-adds]({CURVE})

{_runtimes(spec, evaluation)}

## Calibration

{_calibration(spec)}

{_promises(evaluation)}

## Training

{_training(spec)}

| option | value |
|---|---|
{"".join(f"| {key} | {value} |{chr(10)}" for key, value in recipe.items())}
The terms of the data set apply to its photographs; this folder contains none of them.
"""


def _costs(spec: ModelSpec) -> str:
    """The cost per image, in one or two sentences."""
    first, *later = spec.stages
    said = f"Every image costs {first.mmacs:.1f} million multiply-adds"
    if not later:
        return f"{said}."
    more = ", ".join(f"{stage.mmacs:.1f} million more if it reaches stage {stage.name}" for stage in later)
    return f"""{said}, and {more}.
The last stage costs what {backbone_name(spec.architecture.network)} alone would cost for every image."""


def _alone(evaluation: Evaluation) -> str:
    each = ", ".join(f"{name} {100 * accuracy:.2f} %" for name, accuracy in evaluation.stages.items())
    return f"{each}; all stages agree on {100 * evaluation.agreement:.2f} %" if len(evaluation.stages) > 1 else each


def _promises(evaluation: Evaluation) -> str:
    rows = "\n".join(
        f"| `{p.goal}` {p.value:g} | {p.threshold:g} | {100 * (p.exit_rate or 0):.1f} | {100 * (p.measured or 0):.2f} "
        f"| {'yes' if p.is_kept else 'no'} | {100 * (p.broken or 0):.1f} |"
        for p in evaluation.promises
        if p.threshold is not None
    )
    if not rows:
        return "There are too few photographs to certify an agreement of 90 % or more."
    return f"""Certified promises, tested on the photographs of `{evaluation.split}/`. "Measured" is the share that \
agrees with the last stage, or that loses a correct answer. "Broken" is the probability that another calibration, with \
as many photographs drawn from these, breaks the promise (at most 5 %):

| promise | threshold | exit early, % | measured, % | kept | broken, % |
|---|---|---|---|---|---|
{rows}"""


def _training(spec: ModelSpec) -> str:
    told = spec.told
    return f"""{told("train_images")} photographs, {told("epochs_done")} epochs, {told("seconds") / 60:.0f} minutes on
{told("device")} ({told("processes")} at a time) in {told("precision")} with PyTorch {told("torch")};
{told("calibration_images")} more photographs were held out for calibration. lowfirst {spec.code_version}."""


def _measured(spec: ModelSpec, evaluation: Evaluation) -> str:
    points = {point.threshold: point for point in evaluation.curve if point.threshold in CARD_THRESHOLDS}
    points[evaluation.default.threshold] = evaluation.default
    single = spec.single_scale_mmacs
    return "\n".join(
        f"| {threshold:g}{' (default)' if point is evaluation.default else ''} | {100 * point.exit_rate:.1f} "
        f"| {point.mean_mmacs:.1f} | {100 * point.mean_mmacs / single:.0f} | {100 * point.accuracy:.2f} |"
        for threshold, point in sorted(points.items())
    )


def _runtimes(spec: ModelSpec, evaluation: Evaluation) -> str:
    again = f"To repeat the measurement: `lowfirst evaluate {spec.name}/{spec.version} --data DIR"
    options = f"--precision {evaluation.precision} --runtime {evaluation.runtime}"
    if not evaluation.runtimes:
        return f"{again} {options}`."
    rows = "\n".join(
        f"| {p.runtime} {p.precision} | {p.threshold:g} | {100 * p.exit_rate:.1f} | {100 * p.accuracy:.2f} "
        f"| {100 * p.agreement:.2f} | {' / '.join(f'{100 * share:.2f}' for share in p.stages)} |"
        for p in evaluation.runtimes
    )
    return f"""Every runtime at its default threshold on the same photographs, compared with eager float32:

| runtime | threshold | exit early, % | top-1, % | same answer, % | same answer per stage, % |
|---|---|---|---|---|---|
{rows}

{again} {options} --compare`."""


def draw_curve(spec: ModelSpec, evaluation: Evaluation, path: Path) -> None:
    """Plot top-1 against mean multiply-adds for all thresholds, as PNG."""
    points, default = evaluation.curve, evaluation.default
    line = figures.CURVES[0][0]
    ring = f"default threshold {default.threshold:g}: {100 * default.exit_rate:.0f} % exit, "

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        costs, accuracies = [p.mean_mmacs for p in points], [100 * p.accuracy for p in points]
        axes.plot(costs, accuracies, color=line, lw=2.2, label="threshold from 0 to 1")
        axes.plot(
            default.mean_mmacs, 100 * default.accuracy, "o", ms=9, mfc="white", mec=line, mew=2.2, ls="",
            label=f"{ring}{100 * default.accuracy:.1f} % right",
        )  # fmt: skip
        axes.axvline(
            spec.single_scale_mmacs, color=figures.QUIET, lw=1, ls=":", label="cost of the single-scale network"
        )
        axes.set_xlabel("mean multiply-adds per image, millions")
        axes.set_ylabel("top-1, %")
        axes.set_title(f"{spec.reference}: {evaluation.images} photographs of {evaluation.split}/", loc="left")
        axes.set_xlim(left=0)
        figure.legend(loc="outside lower left", ncols=2, fontsize=9.5)

    figures.draw(path, (8.4, 4.6), paint)


def _calibration(spec: ModelSpec) -> str:
    calibration = Calibration.of(spec, "eager", "float32")
    assert calibration is not None
    assert spec.default_threshold is not None
    effect = calibration.predict(spec.default_threshold)
    temperatures = ", ".join(f"{stage.temperature:.3f} ({stage.name})" for stage in spec.stages)
    drop = effect.accuracy_drop_at_most
    loses = "" if drop is None else f", and at most {100 * drop:.1f} % lose a correct answer"
    return f"""Temperatures {temperatures}, default threshold {spec.default_threshold:g}: the lowest at which at most
{100 * LOST_BY_DEFAULT:g} % of the fitting half of the photographs exit with a wrong answer that the last stage gets
right. The other half, {calibration.table.n} photographs, certifies: at the default threshold at least
{100 * effect.agreement_at_least:.1f} % of images get the answer of the last stage{loses}, with 95 % confidence and
for images like these."""
