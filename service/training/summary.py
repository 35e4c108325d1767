"""Summary printed before training: training and held-out photographs, and problems that will follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import DataError
from service.training.data import MIN_HELD_OUT, Photographs, find
from service.training.folders import by_frequency, counted
from service.training.options import TrainOptions

CONFIDENCE = 0.95
WEAK_PROMISE = 0.95  # an agreement that a useful table can promise


@dataclass(frozen=True, slots=True)
class Summary:
    """The photographs found.

    Attributes:
        train, held_out: the two parts of the photographs.
        val: those of ``val/``; None without it.
        skipped: other files, by kind.
        warnings: what will fail or mean little after training.
    """

    train: Photographs
    held_out: Photographs
    val: Photographs | None
    skipped: tuple[tuple[str, int], ...]
    warnings: tuple[str, ...]

    def lines(self) -> tuple[str, ...]:
        """The summary as it is printed."""
        counts = [self.train.targets.count(target) for target in range(len(self.train.folders))]
        val = "no val/ to evaluate on" if self.val is None else f"{len(self.val)} in val/"
        found = (
            f"{len(counts)} classes; {len(self.train)} photographs to train on, {min(counts)} to {max(counts)} per "
            f"class; {len(self.held_out)} held out for calibration; {val}"
        )
        return (found, f"skipped: {counted(self.skipped)}") if self.skipped else (found,)


def summarise(options: TrainOptions, train: Photographs, held_out: Photographs) -> Summary:
    """The summary of ``options.data``, given the two parts."""
    val, unlike = _val(options, train.folders)
    few = _few(options, held_out) if len(options.stages) > 1 else []
    skipped = train.skipped if val is None else _sum(train.skipped, val.skipped)
    return Summary(train, held_out, val, skipped, (*few, *unlike))


def few_to_certify(certifying: int) -> str | None:
    """Why so few photographs cannot certify; None if a useful promise is possible."""
    most = (1 - CONFIDENCE) ** (1 / max(certifying, 1))
    if most >= WEAK_PROMISE:
        return None
    return (
        f"{certifying} photographs certify: even if all stages agree on all of them, an agreement over "
        f"{100 * most:.1f} % cannot be promised"
    )


def _few(options: TrainOptions, held_out: Photographs) -> list[str]:
    if not options.calibration_share:
        return [
            "--calibration-share 0 holds nothing out: no calibration table can be made from these photographs; "
            "`lowfirst calibrate` needs others, with another --data"
        ]
    if len(held_out) < MIN_HELD_OUT:
        return [
            f"{len(held_out)} photographs are held out of training; calibration needs {MIN_HELD_OUT}: raise "
            "--calibration-share"
        ]
    few = few_to_certify(len(held_out) // 2)
    return [f"{len(held_out)} photographs are held out, of which {few}: raise --calibration-share"] if few else []


def _val(options: TrainOptions, folders: Sequence[str]) -> tuple[Photographs | None, list[str]]:
    try:
        val = find(options.data, "val")
    except DataError:
        return None, []
    foreign = [folder for folder in val.folders if folder not in folders]
    missing = [folder for folder in folders if folder not in val.folders or folder in val.empty]
    said = []
    if foreign:
        said.append(f"val/ has classes that train/ lacks: {_some(foreign)}; evaluating on it will be refused")
    if missing:
        said.append(f"val/ has no photograph of {_some(missing)}: they will not be evaluated")
    return val, said


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _sum(*skipped: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    kinds: Counter[str] = Counter()
    for part in skipped:
        kinds.update(dict(part))
    return by_frequency(kinds)
