"""Calibration and evaluation with a server's sample log, without photographs.

Which of the logged images count:

- Calibration uses images that were *drawn*: sampled on arrival to run every stage, in the background if they exit (see
  ``engine.sampling``). They are a random sample of the traffic, so shares need no weights and Clopper-Pearson bounds
  are exact. Other images would bias both: among those that happen to have every stage, too many escalated.
- An image that came several times counts once: repeats are no further evidence, and must not be in both halves.
- Training photographs never certify, and answers from the cache were not computed.
- Feedback is given by choice, perhaps where an answer was wrong. Its labels fit temperatures and certify accuracy only
if
  every counted image has one; otherwise only the agreement is certified, which needs no labels.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from service.errors import DataError
from service.evaluation.calibrate import beside, cheapest, count, fit, warn
from service.evaluation.passes import Passes
from service.log import logger
from service.model_spec import ModelSpec
from service.samples.reading import FIELD, SavedLog
from service.samples.record import Sample, Truth
from service.store import read_spec, write_spec
from service.training.data import MIN_HELD_OUT
from service.training.trained_on import knows_trained_on, trained_on

# Of the images drawn, the share that may lack a stage: those that ended by their deadline while they waited for it.
MAY_LACK = 0.05

Pair = tuple[str, str]  # runtime and precision
Truths = Mapping[tuple[str, int, float], Truth]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Images that calibrate one runtime and precision.

    Attributes:
        passes: logits of each stage, up to a constant per image; targets of -1 without feedback.
        certifies: which of them certify, (n,) of bool; the others fit. Chosen by the image's hash, so at random.
    """

    passes: Passes
    certifies: torch.Tensor

    def half(self, certifying: bool) -> Passes:
        """Those that certify, or those that fit."""
        rows = self.certifies if certifying else ~self.certifies
        return Passes(tuple(logits[rows] for logits in self.passes.logits), self.passes.targets[rows])

    @property
    def is_labelled(self) -> bool:
        """Whether every image has feedback."""
        return bool((self.passes.targets >= 0).all())

    def unlabelled(self) -> Drawn:
        """The same images without labels."""
        blank = torch.full_like(self.passes.targets, -1)
        return dataclasses.replace(self, passes=dataclasses.replace(self.passes, targets=blank))


def calibrate_from_log(folder: Path, where: str) -> ModelSpec:
    """Calibrate the model in ``folder`` with the log at ``where``, and write the result there.

    A table is made for each runtime and precision that answered enough images; others are kept, unless the temperatures
    changed.

    Raises:
        DataError: no log, none of this model, too few sampled images, or too many of them lack a stage.
        InvalidOption: a package is missing to read it.
    """
    spec, log = read_spec(folder), SavedLog(where)
    groups = drawn_of(spec, folder, log)
    log.tell_broken()
    is_labelled = all(group.is_labelled for group in groups.values())
    if not is_labelled:
        told = sum(int((group.passes.targets >= 0).sum()) for group in groups.values())
        total = sum(len(group.passes) for group in groups.values())
        logger.warning(
            "%d of %d images have feedback: only agreement is certified and temperatures stay, because labels of some "
            "images are no random sample", told, total,
        )  # fmt: skip
        groups = {pair: group.unlabelled() for pair, group in groups.items()}
    first = max(groups.values(), key=lambda group: len(group.passes))
    fit_on = first.half(certifying=False)
    warn(spec, min(len(group.half(certifying=True)) for group in groups.values()))
    temperatures, others = beside(fit(fit_on) if is_labelled else spec.temperatures, spec, list(groups))
    fitted = spec.with_temperatures(temperatures)
    fitted = dataclasses.replace(fitted, default_threshold=cheapest(fit_on, fitted))
    tables = []
    for (runtime, precision), group in groups.items():
        table = count(group.half(certifying=True), fitted, runtime, precision)
        own = cheapest(group.half(certifying=False), fitted)
        tables.append(dataclasses.replace(table, default_threshold=own))
    calibrated = dataclasses.replace(fitted, calibration=(*tables, *others))
    write_spec(folder, calibrated)
    return calibrated


def drawn_of(spec: ModelSpec, folder: Path, log: SavedLog) -> dict[Pair, Drawn]:
    """The images of the log that calibrate the model in ``folder``. Raises as ``calibrate_from_log``."""
    truths = log.truths()
    seen = trained_on(folder) if knows_trained_on(folder) else frozenset()
    groups: dict[Pair, dict[str, tuple[Sample, int]]] = defaultdict(dict)
    drawn = lacking = known = 0
    for sample in of_model(spec, log):
        if not sample.drawn:
            continue
        drawn += 1
        if not sample.is_complete:
            lacking += 1
        elif bytes.fromhex(sample.image_digest) in seen:
            known += 1
        else:
            groups[sample.runtime, sample.precision].setdefault(
                sample.image_sha256, (sample, _target(sample, truths, spec))
            )
    if known:
        logger.warning("%d of %d images were used in training and are left out", known, drawn)
    if lacking > MAY_LACK * drawn:
        raise DataError(
            f"{lacking} of {drawn} sampled images in {log.where} lack a stage: they were answered at their "
            f"deadline, or the server stopped; at most {MAY_LACK:.0%} may, otherwise the rest is not a random sample",
            field=FIELD,
            value=lacking,
            bound=MAY_LACK,
        )
    enough = {pair: _drawn(found.values()) for pair, found in groups.items() if _halves(found) >= MIN_HELD_OUT // 2}
    if not enough:
        most = max((len(found) for found in groups.values()), default=0)
        raise DataError(
            f"{log.where} has {most} different sampled images of {spec.title}; calibration needs at least "
            f"{MIN_HELD_OUT}, some for each half: raise LOWFIRST_SAMPLE_SHARE, or log for longer",
            field=FIELD,
            value=most,
            bound=MIN_HELD_OUT,
        )
    return enough


def of_model(spec: ModelSpec, log: SavedLog) -> Iterable[Sample]:
    """The images of the log that the weights of ``spec`` answered. Raises DataError, at the end: there was none."""
    others: Counter[str] = Counter()
    found = 0
    for sample in log.samples():
        if sample.weights_sha256 == spec.weights_sha256 and len(sample.temperatures) == spec.depth:
            found += 1
            yield sample
        else:
            others[sample.model] += 1
    if not found:
        named = ", ".join(name for name, _ in others.most_common(5)) or "none"
        raise DataError(
            f"{log.where} has no image answered by {spec.title} with these weights, only by {named}",
            field=FIELD,
            value=log.where,
        )


def truth_of(sample: Sample, truths: Truths) -> Truth | None:
    """The feedback on an image."""
    return truths.get((sample.request_id, sample.index, sample.time))


def _target(sample: Sample, truths: Truths, spec: ModelSpec) -> int:
    truth = truth_of(sample, truths)
    return truth.answer if truth is not None and truth.answer < len(spec.classes) else -1


def _halves(found: Mapping[str, object]) -> int:
    """Images of the smaller half."""
    certifying = sum(map(_certifies, found))
    return min(certifying, len(found) - certifying)


def _certifies(image_sha256: str) -> bool:
    return int(image_sha256[-1], 16) % 2 == 1


def _drawn(found: Iterable[tuple[Sample, int]]) -> Drawn:
    pairs = list(found)
    samples: Sequence[Sample] = [sample for sample, _ in pairs]
    stages = range(len(samples[0].temperatures))
    logits = tuple(torch.from_numpy(np.stack([_logits(sample, stage) for sample in samples])) for stage in stages)
    passes = Passes(logits, torch.tensor([target for _, target in pairs]))
    return Drawn(passes, torch.tensor([_certifies(sample.image_sha256) for sample in samples]))


def _logits(sample: Sample, stage: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Whose softmax at the temperature of then is the output: temperature x log p, as softmax ignores a constant."""
    smallest = np.finfo(np.float32).smallest_subnormal  # what was rounded to 0
    found: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = sample.temperatures[stage] * np.log(
        np.maximum(sample.outputs[stage], smallest, dtype=np.float32)
    ).astype(np.float32)
    return found
