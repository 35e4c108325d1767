"""One page: every table and figure that the runs allow, and a sentence for each that they do not."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from service.errors import BrokenModel, DataError, InvalidOption, NotFound
from service.evaluation import paper
from service.evaluation.comparison import Bench, Group
from service.evaluation.compose import Part, compose
from service.evaluation.evaluate import evaluate
from service.evaluation.passes import run_passes
from service.evaluation.report import report
from service.evaluation.runs import Run, read_runs
from service.images.transforms import Preprocessing
from service.inference.predictor import Predictor
from service.model_spec import Architecture
from service.networks.cost import cost
from service.networks.registry import build, names, reference_resolution, resolutions, stage_names
from service.stages import StageSpec
from service.store import ModelStore, read_spec, read_weights, write_spec, write_weights
from service.training.data import find
from service.training.run_folder import LOG

SIZE = 64
BASE = "mobilenet_v1_025"


class _Page(HTMLParser):
    """Its images, links, ids, and whether every element that was opened is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.folder = path.parent
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.images += [given["src"]] if tag == "img" else []
        self.links += [given["href"]] if "href" in given else []
        self.ids += [given["id"]] if "id" in given else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module", autouse=True)
def _quick_timing() -> Iterator[None]:
    """Times are not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.evaluation.comparison.TIMED_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def runs(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The calibrated run, and its two networks, each by itself, as single-scale runs."""
    root = tmp_path_factory.mktemp("runs")
    multi = Path(shutil.copytree(calibrated, root / "multi"))
    spec = read_spec(multi)
    weights = read_weights(multi, spec)
    folders = {"multi": multi}
    for name, size in (("low", SIZE // 2), ("high", SIZE)):
        folder = folders[name] = root / name
        folder.mkdir()
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        single = dataclasses.replace(
            spec,
            name=name,
            architecture=Architecture(BASE, 3),
            preprocessing=Preprocessing.at(size),
            weights_sha256=write_weights(folder, own),
            stages=(StageSpec("single", size, spec.mmacs[0 if name == "low" else 1]),),
            files={},
            default_threshold=None,
            calibration=(),
        )
        write_spec(folder, single)
    return folders


def _report(runs: Sequence[Path], data: Path, out: Path, limit: int | None = None) -> _Page:
    page = _Page(report(runs, data, out, limit=limit, device="cpu", workers=0))
    assert page.open == []
    for name in page.images:
        with Image.open(out / name) as image:
            assert min(image.size) > 300
    assert {path.name for path in out.glob("*.png")} == set(page.images)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    return page


@pytest.fixture(scope="module")
def full(runs: dict[str, Path], shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> _Page:
    return _report(list(runs.values()), shapes, tmp_path_factory.mktemp("page") / "report")


@pytest.fixture(scope="module")
def group(runs: dict[str, Path], shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Group:
    read = dict(enumerate(map(Run.read, runs.values())))
    return Group(BASE, read, Bench(shapes, "val", tmp_path_factory.mktemp("cache"), device="cpu", workers=0))


def test_page_of_all_runs_has_every_figure(full: _Page) -> None:
    kinds = {re.sub(r"-(mobilenet|multi).*", "", name) for name in full.images}
    assert kinds == {"figure-2", "figure-5", "figure-5-ms", "reliability", "contact-sheet"}
    assert "have no spectrum to show" in full.text  # of two pixels by two
    assert "is missing" not in full.text
    assert "takes runs of" not in full.text


def test_partner_is_the_run_trained_most_alike_and_what_differs_is_said(group: Group) -> None:
    multi, low, high = group.runs.values()
    hasty = dataclasses.replace(high, spec=dataclasses.replace(high.spec, recipe={**high.spec.recipe, "epochs": 99}))
    alike = Group(BASE, {0: hasty, 1: multi, 2: low, 3: high}, group.bench)
    assert alike.high_run(multi) == 3
    assert alike.verdict(1).otherwise == ()
    older = {name: value for name, value in high.spec.recipe.items() if name != "augment"}  # it had no such option
    known = Group(
        BASE, {1: multi, 3: dataclasses.replace(high, spec=dataclasses.replace(high.spec, recipe=older))}, group.bench
    )
    assert known.verdict(1).otherwise == ()
    alone = Group(BASE, {0: hasty, 1: multi}, group.bench)
    assert alone.verdict(1).otherwise == (f"epochs {(done := multi.spec.recipe['epochs'])} of 99 ({done})",)


def test_cost_is_told_of_the_network_that_a_run_is_compared_with(group: Group) -> None:
    full = cost(BASE, 3, SIZE)[-1]
    assert [group.base_mmacs(index) for index in group.runs] == pytest.approx([full] * 3)


def test_page_has_the_papers_rows_and_every_runs_options(full: _Page) -> None:
    for row in paper.ROWS[BASE]:
        assert f"<td>{row.top1:.1f}</td>" in full.text
    assert full.text.count("learning_rate=0.02") == 3
    assert full.text.count("seed 0") == 3
    assert "held out low" in full.text  # the log of the run that has one


def test_numbers_of_the_page_are_there_as_json(full: _Page, group: Group) -> None:
    numbers = json.loads((full.folder / "report.json").read_text())
    assert [run["name"] for run in numbers["runs"]] == ["multi", "low", "high"]
    (table,) = numbers["tables"]
    assert [row["accuracy"] for row in table["rows"]] == [row.accuracy for row in group.rows()]
    assert table["verdicts"][0]["gap_to_naive"].keys() == {"value", "low", "high"}
    assert len(table["promises"]["multi"]) == 6


def test_default_row_is_what_evaluating_gives(group: Group, runs: dict[str, Path], shapes: Path) -> None:
    (row,) = [row for row in group.rows() if row.is_default]
    expected = evaluate(Predictor.load(runs["multi"], "cpu", "float32"), shapes, workers=0).default
    assert (row.threshold, row.exit_rate, row.accuracy) == (expected.threshold, expected.exit_rate, expected.accuracy)
    assert row.mmacs == pytest.approx(expected.mean_mmacs)


def test_baselines_are_there_at_the_cost_of_each_size(group: Group) -> None:
    rows = group.rows()
    single = [(row.pixels, row.runs) for row in rows if row.kind == "single-scale"]
    assert single == [("32", (1,)), ("32", (2,)), ("64", (2,))]
    (averaged,) = [row for row in rows if row.kind == "averaged"]
    assert averaged.pixels == "32 + 64"
    assert averaged.mmacs == pytest.approx(sum(cost(BASE, 3, size)[-1] for size in (32, 64)))
    assert {row.runs for row in rows if row.kind == "naive cascade"} == {(1, 2)}
    for size in (32, 64):
        budget = cost(BASE, 3, size)[-1]
        for kind in ("naive cascade", "multi-scale"):
            assert any(row.mmacs <= budget + 1e-9 for row in rows if row.kind == kind)


def test_naive_cascade_of_two_contenders_is_there_once(group: Group) -> None:
    both = Group(BASE, {**group.runs, 3: group.runs[0]}, group.bench)
    naive = [row for row in both.rows() if row.kind == "naive cascade"]
    assert naive == [row for row in group.rows() if row.kind == "naive cascade"]


def test_single_scale_run_is_the_right_network_at_the_right_size(
    group: Group, runs: dict[str, Path], shapes: Path
) -> None:
    passes = run_passes(Predictor.load(runs["high"], "cpu", "float32"), find(shapes, "val"), 0)
    assert group.accuracy(2, 64)[1] == (passes.logits[-1].argmax(1) == passes.targets).double().mean().item()


def test_verdict_needs_its_baselines(group: Group) -> None:
    verdict = group.verdict(0)
    assert verdict.single == group.accuracy(2, 64)[1]
    assert verdict.gain_at_its_cost is not None
    assert verdict.gap_to_naive is not None
    alone = Group(BASE, {0: group.runs[0]}, group.bench).verdict(0)
    assert (alone.single, alone.gain_at_its_cost, alone.gap_to_naive) == (None, None, None)


def test_repeated_seeds_are_summed_up(group: Group) -> None:
    assert group.seeds() == []
    again = dataclasses.replace(
        group.runs[2], spec=dataclasses.replace(group.runs[2].spec, recipe={**group.runs[2].spec.recipe, "seed": 1})
    )
    (found,) = Group(BASE, {2: group.runs[2], 3: again}, group.bench).seeds()
    assert (found.runs, found.of, found.error) == ((2, 3), "single-scale", 0)
    copied = Group(BASE, {2: group.runs[2], 3: again, 4: group.runs[2]}, group.bench)  # a run and what it became
    assert copied.seeds() == [found]
    newer = dataclasses.replace(again, spec=dataclasses.replace(again.spec, recipe={**again.spec.recipe, "mood": 0.0}))
    assert Group(BASE, {2: group.runs[2], 3: newer}, group.bench).seeds() == [found]  # off is as if there were none
    stopped = dataclasses.replace(again, spec=dataclasses.replace(again.spec, training={"epochs_done": 1}))
    assert Group(BASE, {2: group.runs[2], 3: stopped}, group.bench).seeds() == []
    training = {**again.spec.training, "train_images": 7}
    fewer = dataclasses.replace(again, spec=dataclasses.replace(again.spec, training=training))
    assert Group(BASE, {2: group.runs[2], 3: fewer}, group.bench).seeds() == []
    assert found.mean == pytest.approx(group.accuracy(2, 64)[1])


def test_runs_of_one_name_are_told_apart(runs: dict[str, Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(runs["multi"], tmp_path / "multi"))
    third = Path(shutil.copytree(runs["multi"], tmp_path / "multi-2"))
    elsewhere = runs["multi"].parent / "low" / ".." / "multi"  # the first again
    found = read_runs([runs["multi"], other, third, elsewhere, runs["multi"], runs["low"]])
    assert [run.name for run in found] == ["multi", "multi-2", "multi-2-2", "low"]
    assert len({run.slug for run in found}) == len(found)


def test_what_is_missing_is_said(runs: dict[str, Path], trained: Path, shapes: Path, tmp_path: Path) -> None:
    page = _report([runs["multi"]], shapes, tmp_path / "multi")
    assert f"lowfirst train {BASE} --resolution 64" in page.text
    assert f"The naive cascade takes runs of {BASE} at 32 and at 64 pixels." in page.text
    page = _report([runs["high"]], shapes, tmp_path / "single")
    assert f"A run of ms_{BASE} would add its curve." in page.text
    page = _report([trained], shapes, tmp_path / "uncalibrated", limit=7)
    assert "It was never calibrated" in page.text
    assert "a sample: the whole split" in page.text
    assert page.text.startswith("<!doctype html>")
    assert "7 photographs" in page.text


def test_model_of_the_store_is_reported_and_left_as_it_is(tiny_store: Path, make_classes: Path, tmp_path: Path) -> None:
    folder = ModelStore(tiny_store).find("tiny")
    before = set(folder.rglob("*"))
    page = _report([folder], make_classes, tmp_path / "out")
    assert "tiny/1" in page.text
    assert set(folder.rglob("*")) == before
    assert list((tmp_path / "out" / "logits" / "tiny" / "1").iterdir())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_model_of_any_number_of_stages_is_reported(
    stores: Mapping[int, Path], make_classes: Path, tmp_path: Path, depth: int
) -> None:
    page = _report([stores[depth] / "tiny" / "1"], make_classes, tmp_path / "out")
    (table,) = json.loads((page.folder / "report.json").read_text())["tables"]
    sizes = "/".join(map(str, read_spec(stores[depth] / "tiny" / "1").resolutions))
    assert sizes in {row["pixels"] for row in table["rows"]}
    assert len(table["verdicts"]) == (depth > 1)
    assert ("The naive cascade takes" in page.text) == (depth > 1)


def test_network_that_the_paper_does_not_have_is_reported(
    stores: Mapping[int, Path], make_classes: Path, tmp_path: Path
) -> None:
    name = "efficientnet_lite0"
    spec = dataclasses.replace(
        read_spec(stores[1] / "tiny" / "1"),
        architecture=Architecture(name, 4),
        stages=(StageSpec("single", SIZE, cost(name, 4, SIZE)[0]),),
        weights_sha256=write_weights(tmp_path, build(name, 4).state_dict()),
    )
    write_spec(tmp_path, spec)
    page = _report([tmp_path], make_classes, tmp_path / "out")
    assert f"<h3>{name}</h3>" in page.text
    assert "The paper's, on ImageNet" not in page.text


@pytest.fixture
def make_classes(shapes: Path, tmp_path: Path) -> Path:
    """``val/`` with the tiny model's classes."""
    for name, shape in (("ant", "circle"), ("bee", "square"), ("cat", "triangle"), ("dog", "circle")):
        shutil.copytree(shapes / "val" / shape, tmp_path / "data" / "val" / name)
    return tmp_path / "data"


def test_promises_are_held_against_the_photographs(full: _Page) -> None:
    assert re.search(
        r"149 certifying images are needed \(half of those held out\), run \S+ \(eager float32\) has 10", full.text
    )


def test_classes_that_differ_between_runs_are_named(
    runs: dict[str, Path], tiny_store: Path, shapes: Path, tmp_path: Path
) -> None:
    tiny = tiny_store / "tiny" / "1"
    with pytest.raises(DataError) as caught:
        report([runs["multi"], tiny], shapes, tmp_path / "out")
    assert caught.value.message == (
        f"{tiny / 'model.json'} has 4 classes and {runs['multi'] / 'model.json'} 3; "
        "not in both: ant, bee, cat, circle, dog"
    )
    assert not (tmp_path / "out").exists()


def test_log_of_another_version_is_named(run: Path, shapes: Path, tmp_path: Path) -> None:
    (run / LOG).write_text("epoch,mood\n1,2\n")
    with pytest.raises(
        DataError, match=r"log\.csv is no log that this version reads: it has no column 'images_per_second'"
    ):
        report([run], shapes, tmp_path / "out")
    (run / LOG).write_text("epoch,mood\n")
    with pytest.raises(DataError, match=r"log\.csv is no log that this version reads: it has no line"):
        report([run], shapes, tmp_path / "out")


def test_network_of_another_version_is_named(run: Path, shapes: Path, tmp_path: Path) -> None:
    path = run / "model.json"
    path.write_text(path.read_text().replace(f'"ms_{BASE}"', '"ms_vision"'))
    with pytest.raises(BrokenModel, match=r"model\.json has the network 'ms_vision', which this version"):
        report([run], shapes, tmp_path / "out")


@pytest.mark.parametrize("taken", ["index.html", "report.json"])
def test_folder_that_cannot_be_written_into_is_named_before_any_work(
    run: Path, shapes: Path, tmp_path: Path, taken: str
) -> None:
    (tmp_path / "out" / taken).mkdir(parents=True)
    seen: list[int] = []
    with pytest.raises(InvalidOption, match=r"out is '.*out'; it must be a folder that can be written into"):
        report([run], shapes, tmp_path / "out", on_batch=lambda done, total: seen.append(done))
    assert not seen


def test_logits_that_cannot_be_kept_are_no_loss(run: Path, shapes: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "logits", ignore_errors=True)
    (run / "logits").write_text("a file where the folder would be")
    assert report([run], shapes, tmp_path / "out", device="cpu", workers=0, limit=20).is_file()


def test_weights_whose_digest_differs_are_named(run: Path, shapes: Path, tmp_path: Path) -> None:
    digest = read_spec(run).weights_sha256
    (run / "weights.safetensors").write_bytes(b"other bytes")
    with pytest.raises(BrokenModel, match=rf"weights\.safetensors has SHA-256 \w+; model\.json says {digest}"):
        report([run], shapes, tmp_path / "out", device="cpu", workers=0)
    assert not list((tmp_path / "out").iterdir())


def test_run_of_another_format_is_named(run: Path, shapes: Path, tmp_path: Path) -> None:
    path = run / "model.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 9'))
    with pytest.raises(BrokenModel, match=r"model\.json cannot be read: .*format is 9; this version reads up to 2"):
        report([run], shapes, tmp_path / "out")


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_that_leaves_nothing_is_refused(run: Path, shapes: Path, tmp_path: Path, limit: int) -> None:
    with pytest.raises(InvalidOption, match=f"limit is {limit}; it must be at least 1"):
        report([run], shapes, tmp_path / "out", limit=limit)


def test_nowhere_is_no_run(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no model"):
        report([tmp_path], shapes, tmp_path / "out")


def test_the_papers_costs_are_those_of_the_networks() -> None:
    single = set(paper.ROWS)
    assert set(paper.HIGH_MMACS) == single <= set(names())
    assert {name for group in paper.TABLES.values() for name in group} == single
    for name in single:
        full = cost(f"ms_{name}", 1000, reference_resolution(name))
        assert paper.HIGH_MMACS[name] == pytest.approx(full[-1], abs=0.6)
        for row in paper.ROWS[name]:
            if row.kind == "single-scale":
                assert row.mmacs == pytest.approx(cost(name, 1000, int(row.pixels))[-1], abs=0.8)
            if row.exit_rate is not None:  # it follows from the costs, but for their rounding
                assert row.exit_rate == pytest.approx(100 * (1 - (row.mmacs - full[0]) / full[-1]), abs=2)


def _untrained(folder: Path, network: str, run: Path) -> Path:
    """A run of ``network`` that was not trained, of the classes of ``run``."""
    folder.mkdir(parents=True)
    spec = read_spec(run)
    stages = zip(stage_names(network), resolutions(network, SIZE), cost(network, 3, SIZE), strict=True)
    untrained = dataclasses.replace(
        spec,
        name=folder.name,
        architecture=Architecture(network, 3),
        stages=tuple(StageSpec(*stage) for stage in stages),
        weights_sha256=write_weights(folder, build(network, 3).state_dict()),
        default_threshold=None,
        calibration=(),
        files={},
    )
    write_spec(folder, untrained)
    return folder


def test_three_scales_stand_beside_two(runs: dict[str, Path], shapes: Path, tmp_path: Path) -> None:
    deep = _untrained(tmp_path / "deep", f"ms3_{BASE}", runs["multi"])
    page = _report([*runs.values(), deep], shapes, tmp_path / "out")
    assert "<td>16/32/64</td>" in page.text
    assert {"reliability-deep.png", "contact-sheet-deep.png"} <= set(page.images)
    (table,) = json.loads((page.folder / "report.json").read_text())["tables"]
    assert {row["pixels"] for row in table["rows"] if row["kind"] == "naive cascade"} == {"32/64"}


def test_composed_cascade_stands_beside_the_network_that_has_to_beat_it(
    runs: dict[str, Path], shapes: Path, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path / "store")
    compose([Part("low", runs["low"]), Part("high", runs["high"])], store, "naive")
    page = _report([*runs.values(), store.find("naive")], shapes, tmp_path / "out")
    assert "composed of run low, run high, not trained" in page.text
    (table,) = json.loads((page.folder / "report.json").read_text())["tables"]
    composed = [row for row in table["rows"] if row["kind"] == "composed"]
    assert {row["pixels"] for row in composed} == {"32/64"}
    first, last = (cost(BASE, 3, size)[0] for size in (32, 64))
    assert all(row["mmacs"] == pytest.approx(first + (1 - row["exit_rate"]) * last) for row in composed)
    alone = _report([store.find("naive")], shapes, tmp_path / "alone")
    assert f"lowfirst train {BASE} --resolution 64" in alone.text
