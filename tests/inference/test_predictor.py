"""A predictor runs a verified model, and refuses what it cannot trust or run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from service.calibration.exit_rule import confidence, probabilities
from service.errors import BrokenModel, InvalidOption, NotFound
from service.images.decode import decode
from service.images.sizes import in_sizes
from service.images.transforms import Preprocessing
from service.inference.device import choose_device, choose_precision
from service.inference.predictor import Predictor, load_network
from service.inference.runtimes.base import normalise
from service.model_spec import SPEC
from service.networks.registry import build
from service.store import WEIGHTS, read_spec, write_spec, write_weights

MakeJpeg = Callable[..., bytes]

CPU = torch.device("cpu")


@pytest.fixture
def folder(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of ``tiny/1`` that a test may spoil."""
    return Path(shutil.copytree(tiny_store / "tiny" / "1", tmp_path / "tiny"))


@pytest.fixture
def images(make_jpeg: MakeJpeg) -> Tensor:
    """64 photographs, uint8 (64, 3, 64, 64)."""
    return torch.stack([decode(make_jpeg(3000 + i), Preprocessing.at(64)) for i in range(64)])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_stages_are_the_networks(stores: Mapping[int, Path], images: Tensor, depth: int) -> None:
    predictor = Predictor.load(stores[depth] / "tiny" / "1", "cpu", "float32")
    sizes = in_sizes(images, predictor.spec.resolutions)
    network = load_network(stores[depth] / "tiny" / "1", predictor.spec).eval()
    with torch.inference_mode():
        expected = network.run_all([normalise(each, predictor.spec.preprocessing) for each in sizes])
    given = predictor.answers(sizes)
    assert len(given) == depth
    for ours, theirs in zip(given, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_halving_decoded_pixels_is_halving_inside_the_network(folder: Path, images: Tensor) -> None:
    """But for rounding to whole values, at most half a value of a pixel."""
    spec = read_spec(folder)
    halves = avg_pool2d(images.float(), 2)
    assert (in_sizes(images, spec.resolutions)[0] - halves).abs().max() <= 0.5
    network = load_network(folder, spec).eval()
    with torch.inference_mode():
        inside, _ = network(normalise(images, spec.preprocessing))
        outside, _ = network.run(0, normalise(halves, spec.preprocessing), ())
    assert torch.allclose(outside, inside, atol=1e-3)


def test_some_images_of_a_batch_escalate_like_all(folder: Path, images: Tensor) -> None:
    predictor = Predictor.load(folder, "cpu", "float32")
    low, high = in_sizes(images, predictor.spec.resolutions)
    _, carried = predictor.run(0, low, ())
    chosen = torch.tensor([5, 0, 17])
    some, _ = predictor.run(1, high[chosen], tuple(each[chosen] for each in carried))
    assert torch.allclose(some, predictor.run(1, high, carried)[0][chosen], atol=1e-4)


def test_bfloat16_answers_almost_as_float32(folder: Path, images: Tensor) -> None:
    exact, rounded = (Predictor.load(folder, "cpu", precision) for precision in ("float32", "bfloat16"))
    for ours, theirs in zip(exact.answers_to(images), rounded.answers_to(images), strict=True):
        assert (ours.argmax(1) == theirs.argmax(1)).float().mean() >= 0.9
        difference = confidence(probabilities(ours, 1.0)) - confidence(probabilities(theirs, 1.0))
        assert difference.abs().mean() < 0.05


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        ([{"resolution": 16}, {}], "stages is"),
        ([{}, {"resolution": 32}], "the largest resolution must be the crop"),
        ([{"mmacs": 1e9}, {}], "each stage must cost more than the one before"),
        ([{}, {"name": "low"}], "each with a unique name"),
    ],
)
def test_stages_that_are_not_the_networks_are_named(folder: Path, stages: list[dict[str, object]], why: str) -> None:
    raw = json.loads((folder / SPEC).read_text())
    raw["stages"] = [{**known, **changed} for known, changed in zip(raw["stages"], stages, strict=True)]
    (folder / SPEC).write_text(json.dumps(raw))
    with pytest.raises(BrokenModel, match=why):
        Predictor.load(folder, "cpu")


def test_normalising_leaves_the_pixels_alone(images: Tensor) -> None:
    before = images.clone()
    normal = normalise(images, Preprocessing.at(64))
    assert torch.equal(images, before)
    assert normal.dtype == torch.float32
    preprocessing = Preprocessing.at(64)
    expected = (images[3, :, 7, 9] / 255 - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    assert torch.allclose(normal[3, :, 7, 9], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["abacus", "", "meta", "cuda:99", "mps"])
def test_unknown_device_is_named(name: str) -> None:
    with pytest.raises(InvalidOption, match="it must be auto, cpu or a CUDA device of this machine") as caught:
        choose_device(name)
    assert (caught.value.field, caught.value.value) == ("device", name)


def test_automatic_device_and_precision_are_the_best_of_the_machine() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_precision("auto", CPU) in ("float32", "bfloat16")


@pytest.mark.parametrize("name", ["float64", "half", "", "float16"])
def test_precision_that_a_cpu_lacks_is_named(name: str) -> None:
    with pytest.raises(InvalidOption, match=r"it must be auto, float32, bfloat16, float16 .* or int8") as caught:
        choose_precision(name, CPU)
    assert (caught.value.field, caught.value.value) == ("precision", name)


def test_missing_model_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"holds no model: it has no model\.json"):
        Predictor.load(tmp_path, "cpu")


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(BrokenModel, match=r"weights\.safetensors is missing"):
        Predictor.load(folder, "cpu")


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:-1] + b"\x7f", lambda data: b""])
def test_truncated_and_changed_weights_are_named(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = folder / WEIGHTS
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(BrokenModel, match=r"weights\.safetensors has SHA-256 [0-9a-f]{64}; model\.json says"):
        Predictor.load(folder, "cpu")


def test_file_of_no_weights_is_named_even_if_its_hash_is_right(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    write_spec(folder, dataclasses.replace(read_spec(folder), weights_sha256=digest))
    with pytest.raises(BrokenModel, match=r"weights\.safetensors cannot be read"):
        Predictor.load(folder, "cpu")


@pytest.mark.parametrize(
    ("network", "classes"), [("ms_mobilenet_v1_050", 4), ("mobilenet_v1_025", 4), ("ms_mobilenet_v1_025", 5)]
)
def test_weights_of_another_network_are_named(folder: Path, network: str, classes: int) -> None:
    digest = write_weights(folder, build(network, classes).state_dict())
    write_spec(folder, dataclasses.replace(read_spec(folder), weights_sha256=digest))
    with pytest.raises(BrokenModel, match=r"weights\.safetensors does not fit ms_mobilenet_v1_025: '"):
        Predictor.load(folder, "cpu")


@pytest.mark.parametrize(("key", "value"), [("network", "ms_resnet9"), ("options", {"depth": 9})])
def test_network_that_this_version_lacks_is_named(folder: Path, key: str, value: object) -> None:
    raw = json.loads((folder / SPEC).read_text())
    raw["architecture"][key] = value
    (folder / SPEC).write_text(json.dumps(raw))
    with pytest.raises(BrokenModel, match=r"model\.json: "):
        Predictor.load(folder, "cpu")
