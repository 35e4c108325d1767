"""The report's pictures: what each shows, of which runs, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from service.calibration.exit_rule import confidence, probabilities
from service.evaluation import figures
from service.evaluation.comparison import Bench, Group, timed_batch, two_sizes
from service.evaluation.figures import Curve, Dot, Picture, Reliability
from service.evaluation.passes import Passes
from service.evaluation.runs import Run
from service.evaluation.spectrum import Spectrum, spectra
from service.images.decode import decode
from service.inference.device import choose_device
from service.inference.predictor import load_network
from service.inference.runtimes.base import normalise
from service.training.data import CentreCrop, loader

SPECTRUM_IMAGES = 256
SHEET_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Picked:
    """A picture of the page: its file, what it shows, and what it leaves out and would take."""

    file: str | None
    caption: str
    missing: str = ""


def pictures(group: Group, bench: Bench, out: Path) -> list[Picked]:
    """Draw all of one base network's into ``out``."""
    return [
        _spectrum(group, bench, out),
        _regions(group, out),
        *_tradeoffs(group, bench, out),
        *(_reliability(group, index, out) for index in group.multi),
        *(_sheet(group, index, bench, out) for index in group.multi),
    ]


def _spectrum(group: Group, bench: Bench, out: Path) -> Picked:
    """Of the first multi-scale run, and the single-scale run beside it."""
    chosen: list[Run] = []
    missing = ""
    scales = [run for run in group.multi.values() if not run.is_composed]
    if scales:
        run = scales[0]
        single = group.high_run(run)
        chosen = [*([] if single is None else [group.runs[single]]), run]
        if single is None:
            missing = _takes(group, run.resolution, "for comparison")
    elif group.single:
        chosen = [next(iter(group.single.values()))]
        missing = f"A run of ms_{group.backbone} would add the maps of L and H."
    if not chosen:
        return Picked(
            None, "Figure 1", _takes(group, max(run.resolution for run in group.runs.values()), "to show its maps")
        )
    found: dict[str, Spectrum] = {}
    for run in chosen:
        found |= spectra(load_network(run.folder, run.spec).eval(), sample(run, bench))  # type: ignore[arg-type]
    if not any(spectrum.reach > 1 for spectrum in found.values()):
        return Picked(None, "Figure 1", "Last feature maps of one or two pixels have no spectrum to show.")
    file = f"figure-1-{group.backbone}.png"
    figures.spectrum(out / file, found)
    low = (
        " L's map is doubled as H receives it, which leaves nothing at Nyquist's frequency; H's own is taken before "
        "L is added."
        if scales
        else ""
    )
    return Picked(
        file,
        "Figure 1. Mean magnitude of the two-dimensional Fourier transform of the last feature maps, over channels and "
        f"{min(SPECTRUM_IMAGES, len(bench.photographs))} photographs, as a share of the sum over all frequencies. "
        f"Before L is added means before the block's last ReLU, too, unless the sum is taken after it.{low}",
        missing,
    )


def sample(run: Run, bench: Bench) -> Iterator[torch.Tensor]:
    """Normalised images of up to ``SPECTRUM_IMAGES`` photographs spread over the split, float32 (B, 3, R, R)."""
    preprocessing = run.spec.preprocessing
    for batch in loader(bench.photographs.spread(SPECTRUM_IMAGES), CentreCrop(preprocessing), 32, bench.workers or 0):
        if len(batch.targets):
            yield normalise(batch.images, preprocessing)


def _regions(group: Group, out: Path) -> Picked:
    shown = {}
    for index, run in group.single.items():
        sizes = group.sizes(run)
        if len(sizes) > 1:
            shown[f"{run.name} at {sizes[0]} and {sizes[-1]} px"] = two_sizes(group, index)
    missing = "" if shown else _takes(group, max(run.resolution for run in group.runs.values()), "to test at two sizes")
    shown |= {f"{run.name}: L and H": group.cascade(index) for index, run in group.multi.items()}
    if not shown:
        return Picked(None, "Figure 2", missing)
    file = f"figure-2-{group.backbone}.png"
    figures.regions(out / file, shown)
    return Picked(
        file,
        "Figure 2. Images that the first and the last stage get right (regions A to D); precision and share of the "
        f"exits against the threshold (drawn if at least {figures.FEWEST} images exit).",
        missing,
    )


def _tradeoffs(group: Group, bench: Bench, out: Path) -> list[Picked]:
    """Figure 5, once against multiply-adds and once against milliseconds."""
    half = max(run.resolution for run in group.runs.values()) // 2
    missing = []
    if not group.single:
        missing.append(_takes(group, 2 * half, "to stand as dots"))
    if group.multi and not group.pairs:
        missing.append(f"The naive cascade takes runs of {group.backbone} at {half} and at {2 * half} pixels.")
    if not group.multi:
        missing.append(f"A run of ms_{group.backbone} would add its curve.")
    device = choose_device(bench.device)
    where = "one core" if device.type == "cpu" else torch.cuda.get_device_name(device)
    drawn = []
    for letter, name, unit, title, costs, caption in (
        ("", "figure-5", "mean multiply-adds per image, millions", "Top-1 against mean multiply-adds", bench.mmacs, ""),
        (
            "b", "figure-5-ms", "mean time per image, milliseconds", "Top-1 against measured time", bench.milliseconds,
            f" Measured on this machine ({where}, eager {bench.precision}): an image's share of a "
            f"batch of {timed_batch(device)} decoded images, the best of several runs.",
        ),
    ):  # fmt: skip
        file = f"{name}-{group.backbone}.png"
        _tradeoff(out / file, group, costs, unit, f"{group.backbone}: {title[0].lower()}{title[1:]}")
        drawn.append(
            Picked(
                file,
                f"Figure 5{letter}. {title} while the threshold moves; networks without an exit "
                f"are dots. A ring marks the default threshold.{caption}",
                " ".join(missing),
            )
        )
    return drawn


def _tradeoff(path: Path, group: Group, costs: Callable[..., tuple[float, ...]], unit: str, title: str) -> None:
    curves = [Curve(run.name, group.cascade(index, costs), group.default(index)) for index, run in group.multi.items()]
    for pair in group.pairs:
        names = "\nthen ".join(group.runs[each].name for each in pair)
        curves.append(Curve(f"naive cascade: {names}", group.naive(pair, costs), is_naive=True))
    single: list[Dot] = []
    averaged: list[Dot] = []
    for index, run in group.single.items():
        sizes = group.sizes(run)
        is_half = group.is_half(run)
        single += [Dot(costs(run, s)[-1], group.accuracy(index, s)[1], f"{s} px", is_half) for s in sizes]
        both = group.averaged(index)
        if both is not None:
            averaged.append(Dot(sum(costs(run, size)[-1] for size in (sizes[0], sizes[-1])), both[2], f"{both[0]} px"))
    figures.tradeoff(path, curves, single, averaged, unit, title)


def _reliability(group: Group, index: int, out: Path) -> Picked:
    run = group.runs[index]
    file = f"reliability-{run.slug}.png"
    passes = group.bench.passes(run)
    heads = {
        stage.name: (_reliable(logits, passes, 1.0), _reliable(logits, passes, stage.temperature), stage.temperature)
        for stage, logits in zip(run.spec.stages, passes.logits, strict=True)
    }
    figures.reliability(out / file, heads)
    fitted = run.spec.default_threshold is not None
    return Picked(
        file,
        f"Reliability of {run.name}"
        + (", before and after temperature scaling, fitted on photographs held out of training" if fitted else "")
        + f". {figures.BINS} bins of equally many images; the error is the mean distance from the diagonal.",
        "" if fitted else f"It was never calibrated: `lowfirst calibrate {run.folder} --data DIR` fits temperatures.",
    )


def _reliable(logits: torch.Tensor, passes: Passes, temperature: float) -> Reliability:
    claimed = confidence(probabilities(logits, temperature)).numpy()
    return Reliability.of(claimed, (logits.argmax(1) == passes.targets).numpy())


def _sheet(group: Group, index: int, bench: Bench, out: Path) -> Picked:
    """Photographs that exit, escalate, and whose answer the escalation mends or would have mended."""
    run = group.runs[index]
    passes, threshold = bench.passes(run), group.default(index)
    chosen = 0.5 if threshold is None else threshold
    answers = passes.answers(run.spec.temperatures)
    first, last, targets, sure = answers.answers[:, 0], answers.last, answers.targets, answers.confidence[:, 0]
    exited, given_right = answers.exited(chosen), answers.at(chosen) == targets
    first_right, last_right = answers.right[:, 0], answers.right[:, -1]
    kinds = {
        f"Exit with confidence above {chosen:g}, right": exited & given_right,
        "Escalate to the last stage": ~exited,
        "Corrected by escalation: first stage wrong, last stage right": ~exited & ~first_right & last_right,
        "Lost by early exit: confident but wrong, last stage right": exited & ~given_right & last_right,
    }
    random = np.random.default_rng(0)
    photographs = bench.readable(passes)
    labels = run.spec.classes

    def picture(i: int) -> Picture:
        pixels = decode(photographs.paths[i].read_bytes(), run.spec.preprocessing).permute(1, 2, 0).numpy()
        said = f"L: {labels[first[i]]} {100 * sure[i]:.0f} %"
        if exited[i] and first[i] == last[i]:
            return Picture(pixels, labels[targets[i]], said, figures.TEAL)
        return Picture(
            pixels, labels[targets[i]], f"{said}\nH: {labels[last[i]]}", figures.TEAL if exited[i] else figures.ORANGE
        )

    rows = {}
    for name, member in kinds.items():
        found = np.flatnonzero(member)
        if len(found):
            picked = sorted(random.permutation(found)[:SHEET_COLUMNS].tolist())
            rows[f"{name} ({len(found)} of {len(targets)} photographs)"] = [picture(i) for i in picked]
    if not rows:
        return Picked(None, "Contact sheet", "Every photograph exits, and all stages are wrong.")
    file = f"contact-sheet-{run.slug}.png"
    figures.contact_sheet(out / file, rows)
    return Picked(
        file,
        f"{run.name} at {'its default threshold' if threshold is not None else 'threshold 0.5'}: randomly chosen "
        "photographs, each with its label, the answer and confidence of the first stage (L), and the answer of the "
        "last stage (H). They belong to the data set.",
    )


def _takes(group: Group, resolution: int, why: str) -> str:
    return f"A single-scale run is missing: `lowfirst train {group.backbone} --resolution {resolution} …` {why}."
