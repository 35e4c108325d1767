"""The model store: what is written is read back, names cannot lead out of it, and what is broken is named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from service.calibration_table import CalibrationRow, CalibrationTable
from service.errors import BrokenModel, InvalidOption, LowfirstError, NotFound
from service.images.transforms import Preprocessing
from service.inference.predictor import Predictor
from service.model_spec import FORMAT, SPEC, Architecture, ModelSpec
from service.stages import StageSpec
from service.store import WEIGHTS, ModelStore, read_spec, read_weights, write_spec, write_weights

ROWS = (CalibrationRow(0.0, (7, 0), 2, 1, 1, 5), CalibrationRow(1.0, (0, 7), 0, 0, 0, 5))

SPECIMEN = ModelSpec(
    name="specimen",
    version=3,
    architecture=Architecture("ms_resnet18", 2, {"projection": False, "fusion": "after_relu"}),
    classes=("a bee", "Ä cat"),
    class_folders=("n01", "n02"),
    preprocessing=Preprocessing(resize=75, crop=64, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    stages=(StageSpec("low", 32, 1.25, 1.5), StageSpec("high", 64, 5.0 / 3, 0.7)),
    weights_sha256="0" * 64,
    default_threshold=0.65,
    calibration=(CalibrationTable("eager", "float32", 7, ROWS),),
    dataset="Bees & cats",
    recipe={"seed": 1, "network_options": {"projection": False}, "init": None},
    training={"seconds": 1.5},
    code_version="0.1.0",
)


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> ModelStore:
    """A copy of the tiny store, that a test may spoil."""
    return ModelStore(Path(shutil.copytree(tiny_store, tmp_path / "store")))


def _add(store: ModelStore, name: str, version: str) -> Path:
    folder = store.root / name / version
    shutil.copytree(store.root / "tiny" / "1", folder)
    return folder


def unbroken(reference: str, error: LowfirstError) -> None:
    """For a store in which every model can be read."""
    pytest.fail(f"{reference}: {error}")


def test_spec_survives_its_file(tmp_path: Path) -> None:
    write_spec(tmp_path, SPECIMEN)
    assert read_spec(tmp_path) == SPECIMEN
    assert [path.name for path in tmp_path.iterdir()] == [SPEC]


def test_newest_version_goes_by_number_not_by_text(store: ModelStore) -> None:
    for version in ("2", "9", "10"):
        _add(store, "tiny", version)
    assert store.versions("tiny") == [1, 2, 9, 10]
    assert store.find("tiny") == store.root / "tiny" / "10"
    assert store.find("tiny/9") == store.root / "tiny" / "9"


@pytest.mark.parametrize("version", ["01", "0", "-1", "1.5", "latest", "\u0661", ".1"])
def test_folder_that_is_no_version_is_passed_by(store: ModelStore, version: str) -> None:
    _add(store, "tiny", version)
    assert store.versions("tiny") == [1]
    assert [spec.version for spec in store.specs(unbroken)] == [1]


def test_version_without_a_spec_is_passed_by_but_not_taken(store: ModelStore) -> None:
    (store.root / "tiny" / "4").mkdir()
    assert store.versions("tiny") == [1]
    assert store.next_version("tiny") == 5
    assert store.next_version("new") == 1


def test_names_are_those_with_a_version(store: ModelStore) -> None:
    _add(store, "another", "1")
    (store.root / "empty").mkdir()
    (store.root / "file").touch()
    (store.root / ".hidden").mkdir()
    assert store.names() == ["another", "tiny"]
    assert [(spec.name, spec.version) for spec in store.specs(unbroken)] == [("tiny", 1), ("tiny", 1)]


def test_store_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "nowhere")
    assert (store.names(), store.specs(unbroken), store.versions("tiny")) == ([], [], [])
    with pytest.raises(NotFound, match=r"there is no model store .*nowhere"):
        store.find("tiny")


@pytest.mark.parametrize(
    "reference",
    [
        *("", "..", ".", "../tiny", "../../etc/passwd", "/tiny/1", "/etc/passwd", "//tiny", "..\\tiny", "C:tiny"),
        *("tiny\0", "Tiny", "tiny\n", "-tiny", ".tiny", "ti ny", "~", "$HOME", "%2e%2e", "x" * 65),
        *("t\u0456ny", "\uff0e\uff0e", "\udcff"),
        pytest.param("x" * 100_000, id="a very long one"),
    ],
)
def test_name_that_is_none_is_refused(store: ModelStore, reference: str) -> None:
    with pytest.raises(InvalidOption, match="it must be a name of lower-case letters"):
        store.find(reference)


@pytest.mark.parametrize(
    "version", ["..", "../tiny", "../../etc", "1/..", "01", "\u0661", pytest.param("9" * 5000, id="a long one")]
)
def test_version_that_leads_elsewhere_is_not_found(store: ModelStore, version: str) -> None:
    with pytest.raises(NotFound, match=r"tiny has versions \[1\]") as caught:
        store.find(f"tiny/{version}")
    assert caught.value.value == f"tiny/{version}"


def test_unknown_model_is_told_what_there_is(store: ModelStore) -> None:
    with pytest.raises(NotFound, match=r"model is 'bee'; .* has tiny"):
        store.find("bee")


def test_missing_spec_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"holds no model: it has no model\.json"):
        read_spec(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", "{}", '{"format": 1}', "\udcff"])
def test_corrupt_spec_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / SPEC).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BrokenModel, match=r"model\.json cannot be read"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", FORMAT + 1, f"format is {FORMAT + 1}; this version reads up to {FORMAT}"),
        ("classes", ["only one"], "1 classes for 2 logits"),
        ("flavour", "sweet", "another version of lowfirst wrote it: 1 unknown fields, 'flavour' first"),
        ("architecture", "ms_resnet18", "must be a mapping, not str"),
        ("stages", [{"name": "low"}], "resolution"),
        ("preprocessing", {"middle": 1.0}, "middle"),
    ],
)
def test_spec_of_another_format_is_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    (tmp_path / SPEC).write_text(json.dumps({**json.loads(SPECIMEN.to_json()), key: value}))
    with pytest.raises(BrokenModel, match=message):
        read_spec(tmp_path)


def test_matrices_are_kept_in_float16_and_vectors_in_float32(tmp_path: Path) -> None:
    state = {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "linear.weight": torch.randn(4, 3),
        "norm.running_var": torch.full((4,), 1e-9),  # float16 would make this 0
        "norm.num_batches_tracked": torch.tensor(7),
    }
    digest = write_weights(tmp_path, state)
    assert digest == hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        kept = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    half, full = torch.float16, torch.float32
    assert kept == {"conv.weight": half, "linear.weight": half, "norm.running_var": full}


def test_weights_are_read_back_in_float32(tmp_path: Path) -> None:
    state = {"conv.weight": torch.randn(4, 3, 1, 1), "norm.weight": torch.randn(4)}
    spec = dataclasses.replace(SPECIMEN, weights_sha256=write_weights(tmp_path, state))
    read = read_weights(tmp_path, spec)
    assert {tensor.dtype for tensor in read.values()} == {torch.float32}
    assert torch.equal(read["norm.weight"], state["norm.weight"])
    assert torch.allclose(read["conv.weight"], state["conv.weight"], rtol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


def test_weights_are_verified(tmp_path: Path) -> None:
    with pytest.raises(BrokenModel, match=r"weights\.safetensors is missing"):
        read_weights(tmp_path, SPECIMEN)
    write_weights(tmp_path, {"weight": torch.zeros(1)})
    with pytest.raises(BrokenModel, match=f"model.json says {'0' * 64}"):
        read_weights(tmp_path, SPECIMEN)


def test_a_model_that_cannot_be_read_is_left_out_and_named(store: ModelStore) -> None:
    for version, text in (("2", b"{"), ("3", b"\xff\xfe"), ("4", b"[" * 100_000)):
        (_add(store, "tiny", version) / SPEC).write_bytes(text)
    _add(store, "zebra", "1")
    broken = {}
    found = store.specs(lambda reference, error: broken.update({reference: error.message}))
    assert len(found) == 2
    assert list(broken) == ["tiny/2", "tiny/3", "tiny/4"]
    assert all("model.json cannot be read" in message for message in broken.values())


class Payload:
    """What a pickle does when it is read: anything."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        """Make a file."""
        return Path.touch, (self.path,)


def test_a_pickle_is_not_read_as_weights_even_with_the_right_digest(store: ModelStore, tmp_path: Path) -> None:
    folder, proof = store.root / "tiny" / "1", tmp_path / "was-read"
    torch.save({"weight": Payload(proof)}, folder / WEIGHTS)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    spec = dataclasses.replace(read_spec(folder), weights_sha256=digest)
    write_spec(folder, spec)
    with pytest.raises(BrokenModel, match=r"weights\.safetensors cannot be read"):
        Predictor.load(folder, "cpu", "float32")
    (folder / WEIGHTS).rename(folder / "weights.pt")
    with pytest.raises(BrokenModel, match=r"weights\.safetensors is missing"):
        Predictor.load(folder, "cpu", "float32")
    assert not proof.exists()
    torch.load(folder / "weights.pt", weights_only=False)  # it would have been
    assert proof.exists()
