"""Accuracy, exit rate and cost of a model over thresholds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.calibration.certify import THRESHOLDS
from service.errors import DataError, NotFound
from service.evaluation.coverage import Promise, promises
from service.evaluation.passes import Passes, check_classes, run_passes
from service.inference.predictor import Predictor
from service.inference.runtimes import available
from service.inference.runtimes.eager import EagerRuntime
from service.model_spec import ModelSpec
from service.training.data import find
from service.training.trained_on import digests, knows_trained_on, trained_on

EVALUATION = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Point:
    """What a threshold gave: shares of all images, mean millions of multiply-adds an image."""

    threshold: float
    accuracy: float
    exit_rate: float
    mean_mmacs: float


@dataclass(frozen=True, slots=True)
class RuntimePoint:
    """A runtime and precision at its default threshold, against eager float32 at its own; shares of all images.

    ``agreement``: answers that are the same. ``stages``: the same of each stage on all images.
    """

    runtime: str
    precision: str
    threshold: float
    agreement: float
    stages: tuple[float, ...]
    accuracy: float
    exit_rate: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model measured on a labelled set.

    Attributes:
        weights_sha256, temperatures: of the model as it was measured.
        split: folder of the data set.
        images, unreadable: photographs measured; files that could not be read.
        default: at the model's default threshold, or at 1 when it has none.
        stages: accuracy of each stage on all images, by its name.
        agreement: share of images on which all stages answer the same.
        curve: one point a threshold, ascending from 0 to 1.
        runtimes: what the others give on the same images, where that was asked for.
        promises: how the calibration table's bounds fare on these images.
    """

    model: str
    weights_sha256: str
    temperatures: tuple[float, ...]
    runtime: str
    precision: str
    split: str
    images: int
    unreadable: tuple[str, ...]
    default: Point
    stages: Mapping[str, float]
    agreement: float
    curve: tuple[Point, ...]
    runtimes: tuple[RuntimePoint, ...] = ()
    promises: tuple[Promise, ...] = ()

    def to_json(self) -> str:
        """As printed by ``lowfirst evaluate --json`` and kept in a run folder."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """What ``write`` left in a run folder.

        Raises:
            NotFound: nothing.
            DataError: nothing that this version reads.
        """
        path = folder / EVALUATION
        measure = f"run `lowfirst evaluate {folder} --data DIR`"
        if not path.is_file():
            raise NotFound(f"{folder} has no {EVALUATION}: {measure} first")
        try:
            raw: dict[str, Any] = json.loads(path.read_text())
            return cls(
                **{
                    **raw,
                    "temperatures": tuple(raw["temperatures"]),
                    "unreadable": tuple(raw["unreadable"]),
                    "default": Point(**raw["default"]),
                    "curve": tuple(Point(**point) for point in raw["curve"]),
                    "runtimes": tuple(
                        RuntimePoint(**{**point, "stages": tuple(point["stages"])}) for point in raw.get("runtimes", ())
                    ),
                    "promises": tuple(Promise(**promise) for promise in raw.get("promises", ())),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {measure} again") from error

    def write(self, folder: Path) -> None:
        """Keep it in run folder ``folder``, for the model card."""
        (folder / EVALUATION).write_text(self.to_json())

    def is_of(self, spec: ModelSpec) -> bool:
        """Whether it measured the weights of ``spec``, calibrated as they are now."""
        measured = self.weights_sha256, self.temperatures, self.default.threshold
        calibrated = spec.start_threshold(self.runtime, self.precision)
        return measured == (spec.weights_sha256, spec.temperatures, calibrated)


def evaluate(
    predictor: Predictor,
    data: Path,
    split: str = "val",
    workers: int | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure a model on ``data/split``.

    Args:
        on_batch: told (photographs just done, photographs in all).

    Raises:
        DataError: a missing folder, or classes that are not the model's.
    """
    photographs = check_classes(find(data, split), predictor.spec)
    passes = run_passes(predictor, photographs, workers, lambda done: on_batch(done, len(photographs)))
    return summarise(passes, predictor, split)


def seen_in_training(folder: Path, data: Path, split: str) -> int:
    """How many photographs of ``data/split`` the model in ``folder`` was trained on; 0 where it does not know."""
    if not knows_trained_on(folder):
        return 0
    known = trained_on(folder)
    return sum(digest in known for digest in digests(find(data, split).paths))


def compare(
    folder: Path,
    data: Path,
    split: str = "val",
    device: str = "auto",
    workers: int | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[RuntimePoint, ...]:
    """Every runtime and precision of this machine against eager float32, on ``data/split``. Raises as ``evaluate``."""
    reference = Predictor.load(folder, device, "float32")
    photographs = check_classes(find(data, split), reference.spec)
    pairs = available(reference.device, reference.spec)
    points: list[RuntimePoint] = []
    expected: Passes | None = None
    for runtime, precision in pairs:
        predictor = reference if expected is None else Predictor.load(folder, device, precision, runtime)
        passes = run_passes(predictor, photographs, workers, lambda done: on_batch(done, len(pairs) * len(photographs)))
        expected = expected or passes
        points.append(_against(expected, passes, predictor))
    return tuple(points)


def _against(expected: Passes, passes: Passes, predictor: Predictor) -> RuntimePoint:
    spec = predictor.spec
    threshold = spec.start_threshold(predictor.runtime, predictor.precision)
    found, known = passes.answers(spec.temperatures), expected.answers(spec.temperatures)
    known_answers = known.at(spec.start_threshold(EagerRuntime.name, "float32"))
    return RuntimePoint(
        runtime=predictor.runtime,
        precision=predictor.precision,
        threshold=threshold,
        agreement=float((found.at(threshold) == known_answers).mean()),
        stages=tuple((found.answers == known.answers).mean(0).tolist()),
        accuracy=found.accuracy(threshold),
        exit_rate=float(found.exited(threshold).mean()),
    )


def summarise(passes: Passes, predictor: Predictor, split: str) -> Evaluation:
    """The evaluation that follows from every stage's logits on ``split``."""
    spec = predictor.spec
    answers = passes.answers(spec.temperatures)

    def point(threshold: float) -> Point:
        ends = answers.ends(threshold)
        return Point(threshold, answers.accuracy(threshold), sum(ends[:-1]), spec.mean_mmacs(ends))

    return Evaluation(
        model=spec.name if spec.version == 0 else f"{spec.name}/{spec.version}",
        weights_sha256=spec.weights_sha256,
        temperatures=spec.temperatures,
        runtime=predictor.runtime,
        precision=predictor.precision,
        split=split,
        images=len(passes),
        unreadable=passes.unreadable,
        default=point(spec.start_threshold(predictor.runtime, predictor.precision)),
        stages=dict(zip((stage.name for stage in spec.stages), answers.right.mean(0).tolist(), strict=True)),
        agreement=float((answers.answers == answers.last[:, None]).all(1).mean()),
        curve=tuple(map(point, THRESHOLDS if spec.depth > 1 else (1.0,))),
        promises=promises(answers, predictor.calibration),
    )
