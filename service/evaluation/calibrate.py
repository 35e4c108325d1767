"""From held-out photographs to temperatures, a default threshold and certified tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from service.calibration_table import CalibrationTable
from service.errors import DataError
from service.evaluation.passes import Passes, check_classes, run_passes
from service.inference.calibration import tabulate
from service.inference.predictor import Predictor
from service.inference.runtimes import available
from service.model_spec import ModelSpec
from service.networks.registry import is_multi_scale
from service.stages import Temperature
from service.store import read_spec, write_spec
from service.training.data import MIN_HELD_OUT, Photographs, find, halve, hold_out

TEMPERATURES = (0.05, 20.0)
LOST_BY_DEFAULT = 0.005
SAME_TEMPERATURE = 0.01  # devices differ in the last digits of their logits


def calibrate(
    folder: Path,
    data: Path,
    device: str = "auto",
    workers: int | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> ModelSpec:
    """Calibrate the run in ``folder`` on the photographs that its training held out, and write the result there.

    One half fits the temperatures, in float32, and a default threshold for each runtime and precision that the
    device may serve with; the other certifies, with one table for each. Tables made on another device are kept.

    Raises:
        DataError: nothing, or too little, was held out; classes that are not the model's; a single-scale network.
    """
    spec = read_spec(folder)
    check_has_exit(spec, folder)
    held = held_out(spec, data)
    fitting, certifying = halve(held)
    reference = Predictor.load(folder, device, "float32")
    pairs = available(reference.device, spec)
    total = (len(fitting) + len(certifying)) * len(pairs)

    def done(images: int) -> None:
        on_batch(images, total)

    fit_on = run_passes(reference, fitting, workers, done)
    temperature, others = _beside(fit(fit_on), spec, pairs)
    fitted = dataclasses.replace(spec, temperature=temperature, default_threshold=cheapest(fit_on, temperature))
    tables = []
    for runtime, precision in pairs:
        is_reference = (runtime, precision) == (reference.runtime, reference.precision)
        predictor = reference if is_reference else Predictor.load(folder, device, precision, runtime)
        own = fit_on if is_reference else run_passes(predictor, fitting, workers, done)
        table = certify(run_passes(predictor, certifying, workers, done), fitted, predictor)
        tables.append(dataclasses.replace(table, default_threshold=cheapest(own, fitted.temperature)))
    calibrated = dataclasses.replace(fitted, calibration=(*tables, *others))
    write_spec(folder, calibrated)
    return calibrated


def check_has_exit(spec: ModelSpec, folder: Path) -> None:
    """Raises DataError for a single-scale network, whose run folder is good for comparing alone."""
    network = spec.architecture.network
    if not is_multi_scale(network):
        raise DataError(
            f"{folder} is a run of {network}, which is single-scale: it has no exit to calibrate or to serve",
            field="network",
            value=network,
        )


def _beside(
    fitted: Temperature, spec: ModelSpec, pairs: Sequence[tuple[str, str]]
) -> tuple[Temperature, list[CalibrationTable]]:
    """The tables of ``spec`` for none of ``pairs``, and the temperatures that they were made with; ``fitted`` and none
    where what another device fitted is another model's."""
    others = [table for table in spec.calibration if (table.runtime, table.precision) not in pairs]
    was, now = dataclasses.astuple(spec.temperature), dataclasses.astuple(fitted)
    if not others or not all(math.isclose(*both, rel_tol=SAME_TEMPERATURE) for both in zip(was, now, strict=True)):
        return fitted, []
    return spec.temperature, others


def fit(passes: Passes) -> Temperature:
    """The temperature of each head that ``passes`` suggest."""
    return Temperature(
        low=fit_temperature(passes.low, passes.targets), high=fit_temperature(passes.high, passes.targets)
    )


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


def cheapest(passes: Passes, temperature: Temperature) -> float:
    """The lowest threshold at which ``LOST_BY_DEFAULT`` of the photographs or fewer exit wrong that the high pass gets
    right.

    What only the low pass gets right does not count against them: so few photographs make up the difference of the two
    that chance would decide where it is nought.
    """
    table = _count(passes, temperature, "", "")
    allowed = LOST_BY_DEFAULT * table.n
    return next(row.threshold for row in table.rows if row.low_wrong_high_right <= allowed)


def certify(passes: Passes, spec: ModelSpec, predictor: Predictor) -> CalibrationTable:
    """The table of ``predictor``'s runtime and precision, counted on images that fitted nothing."""
    return _count(passes, spec.temperature, predictor.runtime, predictor.precision)


def _count(passes: Passes, temperature: Temperature, runtime: str, precision: str) -> CalibrationTable:
    answers = passes.answers(temperature)
    return tabulate(answers.confidence, answers.low, answers.high, answers.targets, runtime, precision)


def held_out(spec: ModelSpec, data: Path) -> Photographs:
    """The photographs in ``data`` that the training of ``spec`` held out.

    Raises:
        DataError: too few, classes that are not the model's, or other photographs than then.
    """
    photographs = find(data, "train")
    check_classes(photographs, spec)
    _, held = hold_out(photographs, spec.told("calibration_share"), spec.told("seed"))
    expected = spec.told("train_images") + spec.told("calibration_images")
    if len(photographs) != expected:
        raise DataError(
            f"{data} has {len(photographs)} training photographs and had {expected} when the model was trained: "
            "which ones it has not seen cannot be told any more",
            field="data",
            value=len(photographs),
            bound=expected,
        )
    if len(held) < MIN_HELD_OUT:
        raise DataError(
            f"{len(held)} photographs were held out of training; calibration takes at least {MIN_HELD_OUT}: "
            "train with a larger --calibration-share or with more photographs",
            field="data",
            value=len(held),
            bound=MIN_HELD_OUT,
        )
    return held
