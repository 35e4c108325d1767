from __future__ import annotations

from pathlib import Path

import pytest

from loadtest import models
from loadtest.contenders.work import Job, Work
from loadtest.models import Network
from service.store import read_spec
from tests.conftest import MakeJpeg


@pytest.fixture(scope="module")
def photographs(make_jpeg: MakeJpeg) -> list[bytes]:
    return [make_jpeg(seed) for seed in range(20)]


def test_an_untrained_cascade_lets_65_of_100_exit(tmp_path: Path, photographs: list[bytes]) -> None:
    model = models.make(Network.resnet18, tmp_path, photographs)
    work = Work(Job(str(model.cascade), "auto", "eager", port=0, workers=1))
    decoded = [work.decode(data) for data in photographs]
    low = work.first(decoded)[0]
    assert len(work.unsure(low)) == pytest.approx(7, abs=1)  # of 20; batches of another size round otherwise
    assert len(set(low.argmax(1).tolist())) > 1
    assert model.store == tmp_path
    assert model.reference == "untrained-ms-resnet18-256/1"


def test_the_shipped_model_has_a_single_scale_twin(tmp_path: Path, photographs: list[bytes]) -> None:
    model = models.make(Network.mobilenet, tmp_path, photographs)
    cascade, single = read_spec(model.cascade), read_spec(model.single)
    assert cascade.name == "imagenette-mobilenet"
    assert single.preprocessing == cascade.preprocessing
    assert single.single_scale_mmacs == pytest.approx(cascade.single_scale_mmacs)
    work = Work(Job(str(model.single), "float32", "eager", port=0, workers=1))
    answers = work.answer([work.decode(data) for data in photographs])
    assert len({answer["label"] for answer in answers}) > 1


@pytest.mark.parametrize(("rate", "threshold"), [(0.5, 0.25), (0.75, 0.15), (0.99, 0.15), (0.01, 0.35)])
def test_a_threshold_lies_between_two_confidences(rate: float, threshold: float) -> None:
    assert models.threshold_for([0.4, 0.1, 0.3, 0.2], rate) == pytest.approx(threshold)
