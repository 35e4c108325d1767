"""The tiny models of one, two and three stages, and what each says of a few images."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from service.engine import tuning
from service.images.decode import decode
from service.inference.predictor import Predictor
from service.store import ModelStore, read_spec, write_spec
from tests.engine.replicas import write_store
from tests.engine.serving import TIMEOUT, Case, Direct

IMAGES = 24


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Runs when a test says so: the futures of entries must belong to one."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(autouse=True)
def _patient_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine splits no batch for want of time to decode it."""
    monkeypatch.setattr(tuning, "DECODE_SECONDS", TIMEOUT)


@pytest.fixture(scope="session")
def cases(stores: Mapping[int, Path], make_jpeg: Callable[[int], bytes]) -> dict[int, Case]:
    """By the number of stages."""
    return {depth: _case(root / "tiny" / "1", make_jpeg) for depth, root in stores.items()}


@pytest.fixture(params=[1, 2, 3], ids=lambda depth: f"{depth}-stage")
def case(cases: dict[int, Case], request: pytest.FixtureRequest) -> Case:
    """Of each number of stages."""
    return cases[request.param]


@pytest.fixture(params=[2, 3], ids=lambda depth: f"{depth}-stage")
def cascade(cases: dict[int, Case], request: pytest.FixtureRequest) -> Case:
    """Of each number of stages that lets images exit."""
    return cases[request.param]


@pytest.fixture
def two(cases: dict[int, Case]) -> Case:
    """Of two stages, for what has nothing to do with how many there are."""
    return cases[2]


@pytest.fixture(scope="session")
def store(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """See ``replicas.write_store``."""
    return write_store(tiny_store, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def mixed(stores: Mapping[int, Path], tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """``deep1/1``, ``deep2/1`` and ``deep3/1``, of so many stages."""
    root = tmp_path_factory.mktemp("mixed")
    for depth, tiny in stores.items():
        folder = root / f"deep{depth}" / "1"
        shutil.copytree(tiny / "tiny" / "1", folder)
        write_spec(folder, dataclasses.replace(read_spec(folder), name=f"deep{depth}"))
    return ModelStore(root)


@pytest.fixture(scope="session")
def jpeg(make_jpeg: Callable[[int], bytes]) -> bytes:
    return make_jpeg(7)


def _case(folder: Path, make_jpeg: Callable[[int], bytes]) -> Case:
    predictor = Predictor.load(folder, "cpu", "float32")
    images = [_direct(predictor, make_jpeg(seed)) for seed in range(IMAGES)]
    spec = predictor.spec
    names = tuple(stage.name for stage in spec.stages)
    return Case(folder, names, spec.mmacs, images, _middle(images))


def _direct(predictor: Predictor, body: bytes) -> Direct:
    logits = predictor.answers_to(decode(body, predictor.spec.preprocessing)[None])
    return Direct(body, tuple(predictor.probabilities(stage, each)[0] for stage, each in enumerate(logits)))


def _middle(images: list[Direct]) -> float:
    sure = sorted(confidence for image in images for confidence in image.confidences)
    if not sure:
        return 0.5
    sure = sure[len(sure) // 4 : -len(sure) // 4]
    gap, below = max((above - below, below) for below, above in itertools.pairwise(sure))
    assert gap > 1e-3
    return below + gap / 2
