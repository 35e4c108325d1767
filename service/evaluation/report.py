"""One page that compares runs: the paper's tables and figures with ours, PNGs beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.errors import InvalidOption
from service.evaluation import figures, paper
from service.evaluation.comparison import Bench, Group, Row, Seeds, Verdict, timed_batch, two_sizes
from service.evaluation.coverage import Promise, promises, risk
from service.evaluation.figures import Curve, Dot, Picture, Reliability
from service.evaluation.handover import Handover, handover
from service.evaluation.logits import FOLDER
from service.evaluation.passes import Answers, Passes
from service.evaluation.runs import Run, check_same_classes, read_runs
from service.evaluation.spectrum import Spectrum, spectra
from service.images.decode import decode
from service.inference.calibration import Calibration
from service.inference.device import choose_device
from service.inference.exit_rule import confidence, probabilities
from service.inference.predictor import load_network
from service.inference.runtimes.base import normalise
from service.networks.msnet import MSNet
from service.training.data import CentreCrop, loader

PAGE, NUMBERS, TEMPLATE = "index.html", "report.json", "report.html"
SPECTRUM_IMAGES = 256
SHEET_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Picked:
    """A picture of the page: its file, what it shows, and what it leaves out and would take."""

    file: str | None
    caption: str
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """What the page shows of one base network.

    Attributes:
        handovers: by a run's name, block by block.
        promises: by a run's name, what its table certifies of its default threshold, and how its promises fare.
    """

    backbone: str
    rows: list[Row]
    seeds: list[Seeds]
    verdicts: list[Verdict]
    handovers: dict[str, list[Handover]]
    pictures: list[Picked]
    promises: dict[str, tuple[str, tuple[Promise, ...]]]


def report(
    runs: Sequence[Path],
    data: Path,
    out: Path,
    split: str = "val",
    limit: int | None = None,
    device: str = "auto",
    precision: str = "float32",
    workers: int | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Compare ``runs`` on ``data/split``, and write the page, its pictures and numbers into ``out``; gives the page.

    The contact sheet shows photographs of the data set: mind their terms before it is passed on.

    Args:
        runs: folders of runs or of models in the store.
        limit: look at so many photographs only, spread over the split.
        on_batch: told (photographs just done, photographs in all, kept logits among them).

    Raises:
        NotFound, BrokenModel: see ``store``.
        DataError: classes that differ between runs or from the data's, a log that cannot be read.
        InvalidOption: a device or precision not to be had; ``out`` cannot be written into; a limit below 1.
    """
    if limit is not None and limit < 1:
        raise InvalidOption("limit", limit, "at least 1")
    read = read_runs(runs)
    if not read:
        raise InvalidOption("runs", [], "one run folder or model at least")
    check_same_classes(read)
    page, numbers = out / PAGE, out / NUMBERS
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file in (page, numbers):
            with file.open("a") as probe:
                is_new = probe.tell() == 0
            if is_new:  # nothing is left of it if the report fails
                file.unlink()
    except OSError as error:
        raise InvalidOption("out", str(out), f"a folder that can be written into ({error.strerror})") from error
    total = 0
    bench = Bench(data, split, out / FOLDER, limit, device, precision, workers, lambda images: on_batch(images, total))
    bench.check(read[0])
    groups = _groups(read, bench)
    total = len(bench.photographs) * sum(
        1 if run.is_multi_scale else len(group.sizes(run)) for group in groups for run in group.runs.values()
    )
    sections = [_section(group, bench, out) for group in groups]
    numbers.write_text(_numbers(read, sections, len(bench.photographs)))
    page.write_text(_render(read, groups, sections, bench, split, limit))
    return page


def _numbers(runs: Sequence[Run], sections: Sequence[Section], images: int) -> str:
    """The tables as JSON; rows and verdicts name runs by their place."""
    tables = [
        {
            "backbone": section.backbone,
            "rows": list(map(asdict, section.rows)),
            "seeds": list(map(asdict, section.seeds)),
            "verdicts": list(map(_finite, section.verdicts)),
            "handovers": {name: list(map(asdict, blocks)) for name, blocks in section.handovers.items()},
            "promises": {name: list(map(asdict, kept)) for name, (_, kept) in section.promises.items()},
        }
        for section in sections
    ]
    named = [{"name": run.name, "seed": run.seed, "weights_sha256": run.spec.weights_sha256} for run in runs]
    return json.dumps({"images": images, "runs": named, "tables": tables}, indent=1) + "\n"


def _finite(verdict: Verdict) -> dict[str, Any]:
    """Its fields, None for what is infinite: JSON has no word for that."""
    raw = asdict(verdict)
    if raw["cost_at_its_accuracy"]:
        raw["cost_at_its_accuracy"] = {
            k: v if math.isfinite(v) else None for k, v in raw["cost_at_its_accuracy"].items()
        }
    return raw


def _groups(runs: Sequence[Run], bench: Bench) -> list[Group]:
    """By base network, in the order of the paper's tables."""
    order = [name for names in paper.TABLES.values() for name in names]
    found = sorted({run.backbone for run in runs}, key=order.index)
    return [
        Group(name, {index: run for index, run in enumerate(runs) if run.backbone == name}, bench) for name in found
    ]


def _section(group: Group, bench: Bench, out: Path) -> Section:
    return Section(
        group.backbone,
        group.rows(),
        group.seeds(),
        [group.verdict(index) for index in group.multi],
        handovers={run.name: _handover(run, bench) for run in group.multi.values()},
        pictures=[
            _spectrum(group, bench, out),
            _regions(group, out),
            *_tradeoffs(group, bench, out),
            *(_reliability(group, index, out) for index in group.multi),
            *(_sheet(group, index, bench, out) for index in group.multi),
        ],
        promises={run.name: (_certified(group, i), _promises(group, i)) for i, run in group.multi.items()},
    )


def _spectrum(group: Group, bench: Bench, out: Path) -> Picked:
    """Of the first multi-scale run, and the single-scale run beside it."""
    chosen: list[Run] = []
    missing = ""
    if group.multi:
        run = next(iter(group.multi.values()))
        single = group.high_run(run)
        chosen = [*([] if single is None else [group.runs[single]]), run]
        if single is None:
            missing = _takes(group, run.resolution, "to stand beside them")
    elif group.single:
        chosen = [next(iter(group.single.values()))]
        missing = f"A run of ms_{group.backbone} would add the maps of L and H."
    found: dict[str, Spectrum] = {}
    for run in chosen:
        found |= spectra(load_network(run.folder, run.spec).eval(), _batches(run, bench))  # type: ignore[arg-type]
    if not any(spectrum.reach > 1 for spectrum in found.values()):
        return Picked(None, "Figure 1", "Last feature maps of one or two pixels have no spectrum to show.")
    file = f"figure-1-{group.backbone}.png"
    figures.spectrum(out / file, found)
    low = (
        " L's map is doubled as H receives it, which leaves nothing at Nyquist's frequency; H's own is taken before "
        "L is added."
        if group.multi
        else ""
    )
    return Picked(
        file,
        "Figure 1. Mean magnitude of the two-dimensional Fourier transform of the last feature maps, over channels and "
        f"{min(SPECTRUM_IMAGES, len(bench.photographs))} photographs, as a share of the sum over all frequencies. "
        f"Before L is added means before the block's last ReLU, too, unless the sum is taken after it.{low}",
        missing,
    )


def _handover(run: Run, bench: Bench) -> list[Handover]:
    network = load_network(run.folder, run.spec).eval()
    assert isinstance(network, MSNet)
    return handover(network, _batches(run, bench))


def _batches(run: Run, bench: Bench) -> Iterator[torch.Tensor]:
    count = min(SPECTRUM_IMAGES, len(bench.photographs))
    chosen = bench.photographs.subset([i * len(bench.photographs) // count for i in range(count)])
    preprocessing = run.spec.preprocessing
    for batch in loader(chosen, CentreCrop(preprocessing), 32, bench.workers or 0):
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
        "Figure 2. Which of the two passes is right (regions A to D); the precision of the images that exit, and how "
        f"many do, against the threshold (drawn where {figures.FEWEST} exit at least).",
        missing,
    )


def _tradeoffs(group: Group, bench: Bench, out: Path) -> list[Picked]:
    """Figure 5, once against multiply-adds and once against milliseconds."""
    half = max(run.resolution for run in group.runs.values()) // 2
    missing = []
    if not group.single:
        missing.append(_takes(group, 2 * half, "to stand as dots"))
    if group.multi and not any(group.naive(index) for index in group.multi):
        missing.append(f"The naive cascade takes runs of {group.backbone} at {half} and at {2 * half} pixels.")
    if not group.multi:
        missing.append(f"A run of ms_{group.backbone} would add its curve.")
    device = choose_device(bench.device)
    where = "one core" if device.type == "cpu" else torch.cuda.get_device_name(device)
    pictures = []
    for letter, name, unit, title, costs, caption in (
        ("", "figure-5", "mean multiply-adds an image, millions", "Top-1 against mean multiply-adds", bench.mmacs, ""),
        (
            "b", "figure-5-ms", "mean time an image, milliseconds", "Top-1 against measured time", bench.milliseconds,
            f" Measured on this machine ({where}, eager {bench.precision}): an image's share of a "
            f"batch of {timed_batch(device)} decoded images, the best of several runs.",
        ),
    ):  # fmt: skip
        file = f"{name}-{group.backbone}.png"
        _tradeoff(out / file, group, costs, unit, f"{group.backbone}: {title[0].lower()}{title[1:]}")
        pictures.append(
            Picked(
                file,
                f"Figure 5{letter}. {title} while the threshold moves; networks without an exit "
                f"are dots. A ring marks the default threshold.{caption}",
                " ".join(missing),
            )
        )
    return pictures


def _tradeoff(path: Path, group: Group, costs: Callable[..., tuple[float, float]], unit: str, title: str) -> None:
    curves = [Curve(run.name, group.cascade(index, costs), group.default(index)) for index, run in group.multi.items()]
    seen = set()
    for index, run in group.multi.items():
        naive, pair = group.naive(index, costs), (group.low_run(run), group.high_run(run))
        if naive is not None and pair not in seen:
            seen.add(pair)
            names = "\nthen ".join(group.runs[i].name for i in pair if i is not None)
            curves.append(Curve(f"naive cascade: {names}", naive, is_naive=True))
    single: list[Dot] = []
    averaged: list[Dot] = []
    for index, run in group.single.items():
        sizes = group.sizes(run)
        is_half = group.is_half(run)
        single += [Dot(costs(run, s)[1], group.accuracy(index, s)[1], f"{s} px", is_half) for s in sizes]
        both = group.averaged(index)
        if both is not None:
            averaged.append(Dot(sum(costs(run, size)[1] for size in (sizes[0], sizes[-1])), both[2], f"{both[0]} px"))
    figures.tradeoff(path, curves, single, averaged, unit, title)


def _reliability(group: Group, index: int, out: Path) -> Picked:
    run = group.runs[index]
    file = f"reliability-{run.slug}.png"
    passes, temperature = group.bench.passes(run), run.spec.temperature
    heads = {
        head: (_reliable(logits, passes, 1.0), _reliable(logits, passes, value), value)
        for head, logits, value in (("low", passes.low, temperature.low), ("high", passes.high, temperature.high))
    }
    figures.reliability(out / file, heads)
    fitted = run.spec.default_threshold is not None
    return Picked(
        file,
        f"Reliability of {run.name}"
        + (
            ", before and after its temperatures, which were fitted on photographs held out of training"
            if fitted
            else ""
        )
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
    answers = passes.answers(run.spec.temperature)
    low, high, targets, sure = answers.low, answers.high, answers.targets, answers.confidence
    exited, only_high = answers.exited(chosen), ~answers.low_right & answers.high_right
    kinds = {
        f"Exit, surer than {chosen:g}, and right": exited & answers.low_right,
        "Escalate": ~exited,
        "Saved by escalation: the low pass is wrong, the high one right": ~exited & only_high,
        "Lost by the exit: the low pass is sure and wrong, the high one right": exited & only_high,
    }
    random = np.random.default_rng(0)
    photographs = bench.readable(passes)
    labels = run.spec.classes

    def picture(i: int) -> Picture:
        pixels = decode(photographs.paths[i].read_bytes(), run.spec.preprocessing).permute(1, 2, 0).numpy()
        said = f"L: {labels[low[i]]} {100 * sure[i]:.0f} %"
        if exited[i] and low[i] == high[i]:
            return Picture(pixels, labels[targets[i]], said, figures.TEAL)
        return Picture(
            pixels, labels[targets[i]], f"{said}\nH: {labels[high[i]]}", figures.TEAL if exited[i] else figures.ORANGE
        )

    rows = {}
    for name, member in kinds.items():
        found = np.flatnonzero(member)
        if len(found):
            picked = sorted(random.permutation(found)[:SHEET_COLUMNS].tolist())
            rows[f"{name} ({len(found)} of {len(targets)} photographs)"] = [picture(i) for i in picked]
    file = f"contact-sheet-{run.slug}.png"
    figures.contact_sheet(out / file, rows)
    return Picked(
        file,
        f"{run.name} at {'its default threshold' if threshold is not None else 'threshold 0.5'}: photographs drawn by "
        "chance, each under what it shows, with what the low pass (L) says and how sure it is, and the high pass (H). "
        "They are the data set's own.",
    )


def _certified(group: Group, index: int) -> str:
    """What the table certifies of the default threshold, against what these photographs gave."""
    run, threshold = group.runs[index], group.default(index)
    calibration = Calibration.of(run.spec, "eager", group.bench.precision)
    if calibration is None or threshold is None:
        return ""
    effect, answers = calibration.predict(threshold), _answers(group, index)
    drop = answers.accuracy(1) - answers.accuracy(threshold)
    return (
        f"The table for eager {calibration.table.precision} counts {calibration.table.n} photographs. At the default "
        f"threshold {threshold:g} it certifies an agreement of {100 * effect.agreement_at_least:.1f} % or more "
        f"(here: {100 * (1 - risk(answers, 'min_agreement', threshold)):.1f} %) and a drop of "
        f"{100 * effect.accuracy_drop_at_most:.1f} points or less (here: {100 * drop:.1f}; exits "
        f"that are wrong where the high pass is right: {100 * risk(answers, 'max_accuracy_drop', threshold):.1f} %)."
    )


def _answers(group: Group, index: int) -> Answers:
    run = group.runs[index]
    return group.bench.passes(run).answers(run.spec.temperature)


def _promises(group: Group, index: int) -> tuple[Promise, ...]:
    run = group.runs[index]
    return promises(_answers(group, index), Calibration.of(run.spec, "eager", group.bench.precision))


def _takes(group: Group, resolution: int, why: str) -> str:
    return f"A single-scale run is missing: `lowfirst train {group.backbone} --resolution {resolution} …` {why}."


def _render(
    runs: Sequence[Run],
    groups: Sequence[Group],
    sections: Sequence[Section],
    bench: Bench,
    split: str,
    limit: int | None,
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("service.evaluation", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    images = len(bench.photographs)
    measure = {index: group.base_mmacs(index) for group in groups for index in group.runs}
    return environment.get_template(TEMPLATE).render(
        runs=runs,
        by_backbone={section.backbone: section for section in sections},
        tables=paper.TABLES,
        paper_rows=paper.ROWS,
        paper_high=paper.HIGH_MMACS,
        base_mmacs=measure,
        source=paper.SOURCE,
        images=images,
        split=split,
        limit=limit,
        infinite=math.inf,
        dataset=runs[0].spec.dataset,
        precision=bench.precision,
        error=lambda accuracy: math.sqrt(accuracy * (1 - accuracy) / images),
    )
