"""From held-out photographs to temperatures, a default threshold and certified tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from service.calibration.certify import count_table
from service.calibration_table import CalibrationTable
from service.errors import DataError
from service.evaluation.passes import Passes, check_classes, run_passes
from service.inference.predictor import Predictor
from service.inference.runtimes import available
from service.log import logger
from service.model_spec import ModelSpec
from service.networks.registry import COMPOSED
from service.store import read_spec, write_spec
from service.training.data import MIN_HELD_OUT, Photographs, find, find_unlabelled, hold_out, split_in_halves
from service.training.summary import few_to_certify
from service.training.trained_on import knows_trained_on, not_trained_on

TEMPERATURES = (0.05, 20.0)
LOST_BY_DEFAULT = 0.005
SAME_TEMPERATURE = 0.01  # devices differ in the last digits of their logits


def calibrate(
    folder: Path,
    data: Path,
    split: str | None = None,
    is_labelled: bool = True,
    device: str = "auto",
    workers: int | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> ModelSpec:
    """Calibrate the model in ``folder`` on photographs that it was not trained on, and write the result there.

    One half fits the temperatures, in float32, and a default threshold for each runtime and precision of this device.
    The other half certifies, with one table for each. Tables made on another device are kept.

    Args:
        split: folder of ``data`` to use; None uses the photographs held out of training.
        is_labelled: False uses every photograph below ``data``, whatever the folders: temperatures stay as they are,
            and tables certify only the agreement.

    Raises:
        DataError: too few photographs, other classes than the model's, or unexpected labels.
    """
    spec = read_spec(folder)
    chosen = photographs_for(spec, folder, data, split) if is_labelled else unlabelled(spec, folder, data)
    fitting, certifying = split_in_halves(chosen)
    warn(spec, len(certifying))
    reference = Predictor.load(folder, device, "float32")
    pairs = available(reference.device, spec)
    total = (len(fitting) + len(certifying)) * len(pairs)

    def done(images: int) -> None:
        on_batch(images, total)

    fit_on = run_passes(reference, fitting, workers, done)
    temperatures, others = beside(fit(fit_on) if is_labelled else spec.temperatures, spec, pairs)
    fitted = spec.with_temperatures(temperatures)
    fitted = dataclasses.replace(fitted, default_threshold=cheapest(fit_on, fitted))
    tables = []
    for runtime, precision in pairs:
        is_reference = (runtime, precision) == (reference.runtime, reference.precision)
        predictor = reference if is_reference else Predictor.load(folder, device, precision, runtime)
        own = fit_on if is_reference else run_passes(predictor, fitting, workers, done)
        table = certify(run_passes(predictor, certifying, workers, done), fitted, predictor)
        tables.append(dataclasses.replace(table, default_threshold=cheapest(own, fitted)))
    calibrated = dataclasses.replace(fitted, calibration=(*tables, *others))
    write_spec(folder, calibrated)
    return calibrated


def warn(spec: ModelSpec, certifying: int) -> None:
    """Log why a table is worth little: too few photographs, or an unfinished training."""
    done, asked = spec.training.get("epochs_done"), spec.recipe.get("epochs")
    if done is not None and asked is not None and done < asked:
        logger.warning(
            "%s was trained for %d of its %d epochs: `lowfirst train … --resume` will change the model",
            spec.title, done, asked,
        )  # fmt: skip
    few = few_to_certify(certifying)
    if few:
        logger.warning(few)


def beside(
    fitted: Sequence[float], spec: ModelSpec, pairs: Sequence[tuple[str, str]]
) -> tuple[Sequence[float], list[CalibrationTable]]:
    """The tables of ``spec`` for none of ``pairs``, and the temperatures that they were made with; ``fitted`` and none
    where what another device fitted is another model's."""
    others = [table for table in spec.calibration if (table.runtime, table.precision) not in pairs]
    both = zip(spec.temperatures, fitted, strict=True)
    if not others or not all(math.isclose(was, now, rel_tol=SAME_TEMPERATURE) for was, now in both):
        return fitted, []
    return spec.temperatures, others


def fit(passes: Passes) -> tuple[float, ...]:
    """The temperature of each stage that ``passes`` suggest."""
    return tuple(fit_temperature(logits, passes.targets) for logits in passes.logits)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature, within ``TEMPERATURES``, that minimises the cross entropy of ``logits / temperature``.

    ``logits`` (n, K), ``targets`` (n,). Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2.
    """
    logits = logits.double()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        value = cross_entropy(logits / log_temperature.exp(), targets)
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    low, high = TEMPERATURES
    return min(max(log_temperature.exp().item(), low), high)


def cheapest(passes: Passes, spec: ModelSpec) -> float:
    """The default threshold: the lowest at which at most ``LOST_BY_DEFAULT`` of the photographs exit with a wrong
    answer that the last stage gets right. Without labels, with another answer than the last stage's.

    Images that only an early stage gets right do not count in its favour: so few photographs make up the difference
    that chance would decide where it is zero.
    """
    table = count(passes, spec, "", "")
    allowed = LOST_BY_DEFAULT * table.n
    chosen = 1.0
    for row in reversed(table.rows):
        lost = row.disagreements if row.wrong_last_right is None else row.wrong_last_right
        if lost > allowed:
            break
        chosen = row.threshold
    return chosen


def certify(passes: Passes, spec: ModelSpec, predictor: Predictor) -> CalibrationTable:
    """The table of ``predictor``'s runtime and precision, counted on images not used for fitting."""
    return count(passes, spec, predictor.runtime, predictor.precision)


def count(passes: Passes, spec: ModelSpec, runtime: str, precision: str) -> CalibrationTable:
    """The table of a runtime and precision that gave ``passes``, at the temperatures of ``spec``."""
    answers = passes.answers(spec.temperatures)
    targets = None if (answers.targets < 0).all() else answers.targets
    return count_table(answers.confidence, answers.answers, targets, runtime, precision)


def photographs_for(spec: ModelSpec, folder: Path, data: Path, split: str | None) -> Photographs:
    """Labelled photographs that the model in ``folder`` was not trained on.

    Raises:
        DataError: too few, or classes that are not the model's.
    """
    found = check_classes(find(data, split or "train"), spec)
    if knows_trained_on(folder):
        fresh, seen = not_trained_on(found, folder)
        if seen and split:
            logger.warning("%d of %d photographs were used in training and are left out", seen, len(found))
        return _enough(fresh, data)
    if split:
        logger.warning(
            "%s does not know its training photographs: make sure that %s has none of them", spec.title, split
        )
        return _enough(found, data)
    if spec.architecture.network == COMPOSED and "calibration_share" not in spec.recipe:
        raise DataError(
            f"the models of {spec.title} held out different photographs: with --split NAME pass photographs that none "
            "of them was trained on",
            field="split",
        )
    return held_out(spec, data)


def unlabelled(spec: ModelSpec, folder: Path, data: Path) -> Photographs:
    """Every photograph below ``data``, whatever its folder, that the model was not trained on.

    Raises:
        DataError: too few, or the folders are the model's classes: labels are known then.
    """
    found = find_unlabelled(data, spec.class_folders)
    fresh, seen = not_trained_on(found, folder) if knows_trained_on(folder) else (found, 0)
    if seen:
        logger.warning("%d of %d photographs were used in training and are left out", seen, len(found))
    return _enough(fresh, data)


def held_out(spec: ModelSpec, data: Path) -> Photographs:
    """The photographs that the training of ``spec`` held out of ``data``, by its seed and share, for runs without
    digests.

    Raises:
        DataError: another number of photographs than in training, or too few held out.
    """
    photographs = check_classes(find(data, "train"), spec)
    _, held = hold_out(photographs, spec.told("calibration_share"), spec.told("seed"))
    expected = spec.told("train_images") + spec.told("calibration_images")
    if len(photographs) != expected:
        raise DataError(
            f"{data} has {len(photographs)} training photographs and had {expected} when the model was trained: "
            "the photographs that it has not seen can no longer be determined",
            field="data",
            value=len(photographs),
            bound=expected,
        )
    return _enough(held, data)


def _enough(photographs: Photographs, data: Path) -> Photographs:
    if len(photographs) < MIN_HELD_OUT:
        raise DataError(
            f"{data} has {len(photographs)} photographs that were held out of training; calibration needs at least "
            f"{MIN_HELD_OUT}: train with a larger --calibration-share, or name others with --split",
            field="data",
            value=len(photographs),
            bound=MIN_HELD_OUT,
        )
    return photographs
