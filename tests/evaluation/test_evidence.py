"""What is kept of runs is what they answered, names no machine, and makes the documents' tables by itself."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.errors import BrokenModel, DataError
from service.evaluation.contests import Comparison, Evidence
from service.evaluation.evidence import COMPARISONS, MILLISECONDS, PAGE, RUNS, evidence, main, read, state
from service.evaluation.kept import LOGITS, Kept, keep
from service.evaluation.logits import predictor_at
from service.evaluation.milliseconds import Milliseconds, key
from service.evaluation.passes import Passes, run_passes
from service.evaluation.tables import drawn, written
from service.networks.registry import depth
from service.store import read_spec
from service.training.data import find
from service.training.run_folder import LOG, OPTIONS

DOCS = Path(__file__).parents[2] / "docs"
IMAGES, CLASSES = 100, 3
MULTI = "ms_mobilenet_v1_025-64-epochs4"
TOML = """
[[comparison]]
name = "small"
title = "Shapes"
network = "mobilenet_v1_025"
pixels = 64
recipe = "epochs4"
seeds = 1
data = "shapes"
multi = ["ms"]
make = "TRAIN=--augment"

[[bar]]
of = "small"
cost = 60
milliseconds = 75
gain = 1.0
naive = 0.0

[[bar]]
of = "small"
milliseconds = 54

[[contrast]]
says = "a network against itself"
measure = "lead"
some = ["small", "ms"]
others = ["small", "ms"]
"""


def _documents(folder: Path) -> Path:
    (folder / "results").mkdir(parents=True)
    (folder / "results" / COMPARISONS).write_text(TOML)
    (folder / PAGE).write_text("# Results\n\n<!-- drawn: small -->\nold\n<!-- end -->\n\nSaid by hand.\n")
    return folder


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Documents that compare one small network."""
    return _documents(tmp_path / "docs")


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A folder with the one trained run, under the name that the comparison gives it."""
    shutil.copytree(trained, tmp_path / "runs" / MULTI)
    return tmp_path / "runs"


def _arguments(docs: Path, runs: Path, *more: str) -> list[str]:
    return ["--docs", str(docs), "--runs", str(runs), "--workers", "0", *more]


def test_every_run_has_the_name_that_make_takes() -> None:
    comparison = Comparison("c", "C", "resnet18", 128, "epochs12", 2, "imagenette", ("ms", "ms-plain", "ms3"))
    assert comparison.runs == [
        "resnet18-128-epochs12",
        "resnet18-64-epochs12",
        "ms_resnet18-128-epochs12",
        "ms_resnet18-128-plain-epochs12",
        "ms3_resnet18-128-epochs12",
        "resnet18-128-epochs12-seed1",
        "resnet18-64-epochs12-seed1",
        "ms_resnet18-128-epochs12-seed1",
        "ms_resnet18-128-plain-epochs12-seed1",
        "ms3_resnet18-128-epochs12-seed1",
    ]


def test_kept_logits_are_those_of_the_run(runs: Path, shapes: Path, tmp_path: Path) -> None:
    keep(runs / MULTI, shapes, tmp_path / "kept", device="cpu", workers=0)
    kept, spec = Kept.read(tmp_path / "kept"), read_spec(runs / MULTI)
    own = run_passes(predictor_at(runs / MULTI, spec, 64, "cpu", "float32"), find(shapes, "val"), 0)
    for ours, theirs in zip(kept.passes.logits, own.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert torch.equal(kept.passes.targets, own.targets)
    assert kept.mmacs == spec.mmacs
    assert (kept.half, len(kept.log)) == (None, 4)


def test_what_is_kept_names_no_place_on_this_machine(runs: Path, shapes: Path, tmp_path: Path) -> None:
    keep(runs / MULTI, shapes, tmp_path / "kept", device="cpu", workers=0)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [LOG, OPTIONS, LOGITS]
    for name in (OPTIONS, LOG):
        assert "/" not in (tmp_path / "kept" / name).read_text()


def test_run_is_missing_then_begun_then_trained_then_kept(
    docs: Path, runs: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(*more: str) -> list[str]:
        main(_arguments(docs, runs, *more))
        return capsys.readouterr().out.splitlines()

    lines = listed()
    assert lines[0] == "Shapes"
    assert (
        "  missing  mobilenet_v1_025-64-epochs4: make runs/mobilenet_v1_025-64-epochs4 DATA=SHAPES TRAIN=--augment"
        in lines
    )
    assert f"  trained  {MULTI}  (its logits are not kept yet: say where the photographs are)" in lines
    log = runs / MULTI / LOG
    whole = log.read_text()
    log.write_text("\n".join(whole.splitlines()[:3]) + "\n")
    begun = f"  begun    {MULTI}  at epoch 2 of 4: make runs/{MULTI} DATA={shapes} TRAIN=--augment"
    assert begun in listed("--data", f"shapes={shapes}")
    log.write_text(whole)
    assert f"  done     {MULTI}" in listed("--data", f"shapes={shapes}")
    shutil.rmtree(runs)  # what is kept needs no weights
    assert f"  done     {MULTI}" in listed()


def test_page_gets_its_tables_and_keeps_its_words(docs: Path, runs: Path, shapes: Path) -> None:
    main(_arguments(docs, runs, "--data", f"shapes={shapes}", "--time"))
    page = (docs / PAGE).read_text()
    assert page.startswith("# Results\n\n<!-- drawn: small -->\n\n| | ms | multiply-adds, M | top-1, % | seeds |\n")
    assert page.endswith("\n\n<!-- end -->\n\nSaid by hand.\n")
    assert "| MSNet, all stages |" in page
    assert "not measured" not in page
    assert (docs / "results" / "seeds-small.png").is_file()
    times = Milliseconds.read(docs / "results" / MILLISECONDS)
    assert [len(each) for each in times.stages.values()] == [2]
    main(_arguments(docs, runs))
    assert (docs / PAGE).read_text() == page


def _logits(right: int, sure: bool = False) -> Tensor:
    """Of answers that are right on the first images; ``sure``: the surer the earlier."""
    said = torch.where(torch.arange(IMAGES) < right, 0, 1)
    logits = torch.nn.functional.one_hot(said, CLASSES).float()
    return logits * (2 - torch.arange(IMAGES)[:, None] / IMAGES if sure else 1)


def _kept(network: str, *logits: Tensor) -> Kept:
    options = {"network": network, "resolution": 64, "network_options": {}}
    return Kept(options, (), Passes(logits, torch.zeros(IMAGES, dtype=torch.int64)), None)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The first stage is right on 60, the last on 80, the single-scale network on 70, in 1, 4 and 4 milliseconds."""
    folder = _documents(tmp_path_factory.mktemp("made up") / "docs") / "results"
    comparisons, raw = read(folder)
    base, multi = "mobilenet_v1_025", "ms_mobilenet_v1_025"
    kept = {
        "mobilenet_v1_025-64-epochs4": _kept(base, _logits(70)),
        MULTI: _kept(multi, _logits(60, sure=True), _logits(80)),
    }
    times = {key(base, CLASSES, 64, {}): (4.0,), key(multi, CLASSES, 64, {}): (1.0, 4.0)}
    found = Evidence(comparisons, raw["bar"], raw["contrast"], kept, Milliseconds("by hand", times))
    return drawn(found, folder)


def test_tables_say_what_follows_from_the_logits(tables: dict[str, str]) -> None:
    assert "| single-scale, 64 px | 4.00 |" in tables["small"]
    assert "| MSNet, all stages | 5.00 |" in tables["small"]
    at_shares, verdict = (line for line in tables["small"].splitlines() if line.startswith("| MSNet | "))
    assert at_shares.startswith("| MSNet | 60.0 | 75.0 | 80.0 | 80.0 |")  # at 40, 60, 80 and 100 % of 4 ms
    assert verdict.startswith("| MSNet | 55 (")
    assert "| +10.0 (" in verdict
    assert "| a network against itself | +0.0 (0.0 to 0.0) | +0.0 (0.0 to 0.0) | 1 |" in tables["contrasts"]


def test_bars_say_what_is_reached_what_is_not_and_what_was_not_run(tables: dict[str, str]) -> None:
    cost, milliseconds, gain, naive, missed = tables["bars"].splitlines()[2:]
    assert "at most 60 %" in cost
    assert milliseconds.endswith("| reached, 1 seed |")
    assert gain.endswith("| reached, 1 seed |")
    assert naive.endswith("| not run | - |")
    assert "| 55 (" in missed
    assert missed.endswith("| **not reached**, 1 seed |")


def test_place_for_an_unknown_table_is_named() -> None:
    with pytest.raises(DataError, match=r"place for 'nobody': it must be one of small"):
        written("<!-- drawn: nobody -->\n<!-- end -->\n", {"small": ""})


def test_damaged_logits_are_named(docs: Path) -> None:
    folder = docs / "results" / RUNS / MULTI
    folder.mkdir(parents=True)
    (folder / LOGITS).write_bytes(b"PK")
    with pytest.raises(BrokenModel, match=f"{MULTI} is not a stored run"):
        evidence(docs / "results")


def test_runs_that_were_tested_on_other_photographs_are_not_compared(docs: Path, runs: Path, shapes: Path) -> None:
    folder = docs / "results" / RUNS
    keep(runs / MULTI, shapes, folder / MULTI, device="cpu", workers=0)
    base = folder / "mobilenet_v1_025-64-epochs4"
    shutil.copytree(folder / MULTI, base)
    (base / OPTIONS).write_text((base / OPTIONS).read_text().replace("ms_mobilenet", "mobilenet"))
    with np.load(base / LOGITS) as kept:
        np.savez(base / LOGITS, targets=kept["targets"][::-1], logits0=kept["logits0"])
    with pytest.raises(BrokenModel, match=r"mobilenet_v1_025-64-epochs4 and .* were tested on other photographs"):
        evidence(docs / "results")


def test_committed_runs_are_whole_and_those_that_the_documents_compare() -> None:
    comparisons, _ = read(DOCS / "results")
    known = {run for comparison in comparisons.values() for run in comparison.runs}
    for folder in (DOCS / "results" / RUNS).iterdir():
        assert folder.name in known
        kept = Kept.read(folder)
        assert len(kept.log) == kept.options["epochs"] == kept.options["epochs_done"]
        assert len(kept.passes.logits) == depth(kept.options["network"])
        assert not any(str(value).startswith("/") for value in kept.options.values())
        assert state(folder.name, folder.parent, Path("nowhere")).is_kept


def test_bars_and_contrasts_are_of_comparisons_that_there_are() -> None:
    raw: dict[str, Any] = tomllib.loads((DOCS / "results" / COMPARISONS).read_text())
    names = {each["name"] for each in raw["comparison"]}
    asked = {bar["of"] for bar in raw["bar"]}
    against = {contrast[side][0] for contrast in raw["contrast"] for side in ("some", "others")}
    assert asked | against <= names
    places = set(re.findall(r"<!-- drawn: ([\w-]+) -->", (DOCS / PAGE).read_text()))
    assert places == names | {"bars", "contrasts"}
