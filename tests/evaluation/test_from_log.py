"""Calibration and evaluation by a log: the same tables that photographs give, of what was drawn alone."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from service.calibration.certify import count_table
from service.calibration.exit_rule import probabilities
from service.errors import DataError
from service.evaluation.from_log import calibrate_from_log
from service.evaluation.history import history
from service.evaluation.passes import Passes
from service.model_spec import ModelSpec
from service.samples.files import Bounds
from service.samples.log import Options, SampleLog
from service.samples.record import Sample, Truth
from service.store import read_spec

HOUR = 3600.0
BEGIN = 500_000 * HOUR  # the beginning of an hour
COUNT = 400


@pytest.fixture
def model(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny_store / "tiny" / "1", tmp_path / "store" / "tiny" / "1"))


def body(index: int) -> bytes:
    """Stands for an image: nothing here decodes it."""
    return b"image %d" % index


def certifies(index: int) -> bool:
    """Whether that image is in the half that certifies."""
    return int(hashlib.sha256(body(index)).hexdigest()[-1], 16) % 2 == 1


class Traffic:
    """What a server of two stages saw: seeded logits of ``COUNT`` images, and their truth."""

    def __init__(self, spec: ModelSpec) -> None:
        random = np.random.default_rng(0)
        self.spec = spec
        self.truth = random.integers(0, 4, COUNT)
        right = np.eye(4)[self.truth]
        self.logits = [
            torch.tensor(strength * right + random.normal(size=(COUNT, 4)), dtype=torch.float32) for strength in (1, 3)
        ]
        self.outputs = [
            probabilities(logits, temperature).numpy()
            for logits, temperature in zip(self.logits, spec.temperatures, strict=True)
        ]

    def sample(self, index: int, **changed: object) -> Sample:
        """One image, answered at threshold 0.65."""
        low, high = (outputs[index] for outputs in self.outputs)
        exits = low.max() > 0.65
        answering = low if exits else high
        sample = Sample(
            time=BEGIN + 30 * index, request_id=f"r{index}", index=0, model="tiny/1",
            weights_sha256=self.spec.weights_sha256, runtime="eager", precision="float32",
            temperatures=self.spec.temperatures, outputs=(low, high), answer=int(answering.argmax()), label="",
            exit="low" if exits else "high", stage=int(not exits), reason="confident" if exits else "escalated",
            confidence=float(low.max()), threshold=0.65, drawn=True, ms=1.0,
        )  # fmt: skip
        return dataclasses.replace(sample, **changed)  # type: ignore[arg-type]

    def truth_of(self, index: int) -> Truth:
        answer = int(self.truth[index])
        return Truth(BEGIN + 1e6, f"r{index}", 0, BEGIN + 30 * index, "tiny/1", answer, self.spec.classes[answer])

    def passes(self, indices: Sequence[int], is_labelled: bool) -> Passes:
        """The same as photographs give it."""
        targets = torch.tensor(self.truth if is_labelled else np.full(COUNT, -1))
        return Passes(tuple(logits[list(indices)] for logits in self.logits), targets[list(indices)])


@pytest.fixture
def traffic(model: Path) -> Traffic:
    """Of the model."""
    return Traffic(read_spec(model))


@pytest.fixture
def where(tmp_path: Path) -> str:
    """Where the log is."""
    return str(tmp_path / "log")


def write(where: str, samples: Iterable[tuple[Sample, bytes]], truths: Iterable[Truth] = ()) -> None:
    log = SampleLog(Options(where, "jsonl", Bounds(1 << 24, 1 << 25)))
    for sample, image in samples:
        log.add(sample, image)
    for truth in truths:
        log.tell(truth)
    log.start()
    log.close()


def test_agreement_is_certified_by_the_half_of_the_drawn_images_that_fits_nothing(
    model: Path, traffic: Traffic, where: str
) -> None:
    def logged() -> Iterator[tuple[Sample, bytes]]:
        for index in range(COUNT):
            yield traffic.sample(index), body(index)
            yield traffic.sample(index, time=BEGIN + 1e5), body(index)  # came again
        for index in range(COUNT, 2 * COUNT):  # not drawn: it is there since it escalated
            yield traffic.sample(0, drawn=False), body(index)
        yield traffic.sample(0, weights_sha256="of another model"), body(-1)

    write(where, logged())
    before, spec = read_spec(model), calibrate_from_log(model, where)
    certifying = [index for index in range(COUNT) if certifies(index)]
    answers = traffic.passes(certifying, is_labelled=False).answers(before.temperatures)
    expected = count_table(answers.confidence, answers.answers, None, "eager", "float32")
    (table,) = spec.calibration
    assert dataclasses.replace(table, default_threshold=None) == expected
    assert table.n == len(certifying)
    assert spec.temperatures == before.temperatures
    assert read_spec(model) == spec


def test_where_every_truth_was_told_temperatures_are_fitted_and_accuracy_is_certified(
    model: Path, traffic: Traffic, where: str
) -> None:
    indices = range(COUNT)
    write(where, ((traffic.sample(i), body(i)) for i in indices), (traffic.truth_of(i) for i in indices))
    spec = calibrate_from_log(model, where)
    (table,) = spec.calibration
    certifying = [index for index in indices if certifies(index)]
    answers = traffic.passes(certifying, is_labelled=True).answers(spec.temperatures)
    expected = count_table(answers.confidence, answers.answers, answers.targets, "eager", "float32")
    assert dataclasses.replace(table, default_threshold=None) == expected
    assert spec.temperatures[0] != 1
    assert table.is_labelled


def test_truths_of_some_are_not_taken_for_those_of_all(
    model: Path, traffic: Traffic, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    indices = range(COUNT)
    write(where, ((traffic.sample(i), body(i)) for i in indices), (traffic.truth_of(i) for i in indices if i % 2))
    (table,) = calibrate_from_log(model, where).calibration
    assert not table.is_labelled
    assert f"{COUNT // 2} of {COUNT} images have feedback" in caplog.text


def test_the_table_of_another_runtime_is_kept(model: Path, traffic: Traffic, where: str) -> None:
    write(where, ((traffic.sample(i, runtime="openvino"), body(i)) for i in range(COUNT)))
    tables = calibrate_from_log(model, where).calibration
    assert [table.runtime for table in tables] == ["openvino", "eager"]


def test_too_few_drawn_images_are_told_with_how_many_it_takes(model: Path, traffic: Traffic, where: str) -> None:
    write(where, ((traffic.sample(i, drawn=i < 5), body(i)) for i in range(COUNT)))
    with pytest.raises(
        DataError, match=r"has 5 different sampled images of tiny/1; calibration needs at least 20"
    ) as caught:
        calibrate_from_log(model, where)
    assert (caught.value.field, caught.value.value, caught.value.bound) == ("from_log", 5, 20)


def test_images_that_lack_a_stage_though_drawn_make_no_random_sample(model: Path, traffic: Traffic, where: str) -> None:
    def logged() -> Iterator[tuple[Sample, bytes]]:
        for index in range(COUNT):
            sample = traffic.sample(index)
            yield dataclasses.replace(sample, outputs=sample.outputs[: 1 + (index % 10 > 0)]), body(index)

    write(where, logged())
    with pytest.raises(DataError, match=r"40 of 400 sampled images .* lack a stage"):
        calibrate_from_log(model, where)


def test_a_log_of_other_models_names_them(model: Path, traffic: Traffic, where: str) -> None:
    write(where, iter([(traffic.sample(0, weights_sha256="x", model="bees/7"), body(0))]))
    for command in (calibrate_from_log, history):
        with pytest.raises(DataError, match=r"no image answered by tiny/1 with these weights, only by bees/7"):
            command(model, where)


def test_accuracy_over_time_is_that_of_the_answers_given(model: Path, traffic: Traffic, where: str) -> None:
    indices = range(COUNT)
    write(where, ((traffic.sample(i), body(i)) for i in indices), (traffic.truth_of(i) for i in indices if i % 4))
    found = history(model, where)
    assert found.by == "hour"
    assert [period.images for period in found.periods] == [120, 120, 120, 40]
    samples = [traffic.sample(i) for i in indices]
    first = [i for i in range(120) if i % 4]
    right = sum(samples[i].answer == traffic.truth[i] for i in first)
    assert (found.periods[0].labelled, found.periods[0].right) == (len(first), right)
    assert found.total.images == COUNT
    assert found.total.exit_rate == pytest.approx(np.mean([sample.exit == "low" for sample in samples]))
    assert found.total.agreement == pytest.approx(
        np.mean([sample.answer == sample.outputs[1].argmax() for sample in samples])
    )
    assert found.total.at_least is not None
    assert found.total.accuracy is not None
    assert found.total.at_most is not None
    assert found.total.at_least < found.total.accuracy < found.total.at_most


def test_a_log_of_days_is_told_by_the_day(model: Path, traffic: Traffic, where: str) -> None:
    write(where, ((traffic.sample(i, time=BEGIN + i * HOUR), body(i)) for i in range(72)))
    found = history(model, where)
    assert found.by == "day"
    assert sum(period.images for period in found.periods) == 72
    assert all(period.begin.endswith("T00:00:00+00:00") for period in found.periods)
    assert found.total.accuracy is None
