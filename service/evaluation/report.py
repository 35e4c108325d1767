"""One HTML page that compares runs: the paper's tables and figures next to ours, with PNGs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.calibration.certify import Calibration
from service.errors import InvalidOption
from service.evaluation import paper
from service.evaluation.comparison import Bench, Group, Row, Seeds, Verdict
from service.evaluation.coverage import Promise, promises, risk
from service.evaluation.handover import Handover, handover
from service.evaluation.logits import FOLDER
from service.evaluation.pictures import Picked, pictures, sample
from service.evaluation.runs import Run, check_same_classes, read_runs
from service.inference.predictor import load_network
from service.networks.msnet import MSNet

PAGE, NUMBERS, TEMPLATE = "index.html", "report.json", "report.html"
OTHERS = "Networks that the paper does not have"


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
    """By base network, in the order of the paper's tables; those that it does not have come last, by name."""
    known = [name for names in paper.TABLES.values() for name in names]
    found = {run.backbone for run in runs}
    return [
        Group(name, {index: run for index, run in enumerate(runs) if run.backbone == name}, bench)
        for name in (*(name for name in known if name in found), *sorted(found - set(known)))
    ]


def _tables(groups: Sequence[Group]) -> dict[str, tuple[str, ...]]:
    """Base networks by the title that they stand under: the paper's tables, and one for all that it does not have."""
    others = tuple(group.backbone for group in groups if group.backbone not in paper.ROWS)
    return {**paper.TABLES, OTHERS: others}


def _section(group: Group, bench: Bench, out: Path) -> Section:
    return Section(
        group.backbone,
        group.rows(),
        group.seeds(),
        [group.verdict(index) for index in group.multi],
        handovers={run.name: blocks for run in group.multi.values() if (blocks := _handover(run, bench))},
        pictures=pictures(group, bench, out),
        promises={run.name: (_certified(group, i), _promises(group, i)) for i, run in group.multi.items()},
    )


def _handover(run: Run, bench: Bench) -> list[Handover]:
    network = load_network(run.folder, run.spec).eval()
    return handover(network, sample(run, bench)) if isinstance(network, MSNet) else []


def _certified(group: Group, index: int) -> str:
    """What the table certifies of the default threshold, against what these photographs gave."""
    run, threshold = group.runs[index], group.default(index)
    calibration = Calibration.of(run.spec, "eager", group.bench.precision)
    if calibration is None or threshold is None:
        return ""
    effect, answers = calibration.predict(threshold), group.answers(index)
    drop = answers.accuracy(1) - answers.accuracy(threshold)
    return (
        f"The table for eager {calibration.table.precision} counts {calibration.table.n} photographs. At the default "
        f"threshold {threshold:g} it certifies an agreement of {100 * effect.agreement_at_least:.1f} % or more "
        f"(here: {100 * (1 - risk(answers, 'min_agreement', threshold)):.1f} %) and a drop of "
        f"{100 * (effect.accuracy_drop_at_most or 0):.1f} points or less (here: {100 * drop:.1f}; exits "
        f"that are wrong where the last stage is right: {100 * risk(answers, 'max_accuracy_drop', threshold):.1f} %)."
    )


def _promises(group: Group, index: int) -> tuple[Promise, ...]:
    run = group.runs[index]
    return promises(group.answers(index), Calibration.of(run.spec, "eager", group.bench.precision))


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
        tables=_tables(groups),
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
