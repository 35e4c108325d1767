"""torchvision's networks, with weights and norms that are all random, give the same logits under our names."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models import get_model

from service.errors import BrokenModel, InvalidOption, NotFound
from service.networks.registry import BACKBONES, build
from service.networks.transplant import LITE0, OPTIONS, SOURCES, TORCHVISION, from_torchvision, pretrained

SMALL = "mobilenet_v3_small"
HEAD = ("classifier.3.weight", "classifier.3.bias")

# Our own networks; those of ``networks.torchvision`` are compared in its test.
OWN = ("resnet18", "densenet121")


@cache
def torchvision_network(name: str) -> nn.Module:
    """In evaluation mode and float64; no two norms alike, so that a swapped pair shows."""
    torch.manual_seed(0)
    network: nn.Module = get_model(name, weights=None, num_classes=5).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for scale in (module.weight, module.running_var):
                nn.init.uniform_(scale, 0.5, 1.5)
            for shift in (module.bias, module.running_mean):
                nn.init.normal_(shift, std=0.2)
    return network


def state_of(name: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torchvision_network(name).state_dict()
    return state


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("resolution", [64, 100])
def test_transplanted_network_answers_as_torchvisions(name: str, resolution: int) -> None:
    theirs, ours = torchvision_network(name), build(name, 5, OPTIONS.get(name)).double().eval()
    ours.load_state_dict(from_torchvision(name, theirs.state_dict()))
    x = torch.randn(2, 3, resolution, resolution, dtype=torch.float64)
    with torch.no_grad():
        logits = theirs(x)
        assert_close(ours(x)[0], logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # images differ, so the comparison means something


def test_the_papers_resnet_lacks_only_its_projection() -> None:
    state = from_torchvision("resnet18", state_of("resnet18"))
    missing, unexpected = build("resnet18", 5).load_state_dict(state, strict=False)
    assert not unexpected
    assert missing
    assert all(name.startswith("blocks.0.body.4.shortcut.") for name in missing)


@pytest.mark.parametrize("name", [*OWN, SMALL])
def test_weights_are_renamed_and_never_changed(name: str) -> None:
    state = state_of(name)
    renamed = from_torchvision(name, state)
    assert len(renamed) == len(state)
    assert [id(tensor) for tensor in renamed.values()] == [id(tensor) for tensor in state.values()]


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_tensor_has_one_name_here_and_one_there(name: str) -> None:
    with torch.device("meta"):
        ours = BACKBONES[name](2, **OPTIONS.get(name, {})).state_dict()
    theirs = get_model(name, weights=None, num_classes=2).state_dict()
    renamed = from_torchvision(name, theirs)
    assert {key: tensor.shape for key, tensor in renamed.items()} == {key: t.shape for key, t in ours.items()}


def written_by_torch(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state, path)


def written_by_safetensors(state: dict[str, Tensor], path: Path) -> None:
    save_file(state, path)


WRITERS = {"weights.pth": written_by_torch, "weights.safetensors": written_by_safetensors}


@pytest.mark.parametrize("file", WRITERS)
def test_file_of_torchvisions_weights_becomes_our_state(file: str, tmp_path: Path) -> None:
    WRITERS[file](state_of(SMALL), tmp_path / file)
    state = pretrained(SMALL, 5, str(tmp_path / file))
    expected = from_torchvision(SMALL, state_of(SMALL))
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in state.items())


def test_last_layer_for_other_classes_is_left_out_and_the_hidden_one_is_not(tmp_path: Path) -> None:
    torch.save(state_of(SMALL), tmp_path / "weights.pth")
    same, other = (pretrained(SMALL, classes, str(tmp_path / "weights.pth")) for classes in (5, 6))
    assert same.keys() - other.keys() == set(HEAD)
    assert "classifier.0.weight" in other


def test_names_of_torchvisions_older_densenet_are_known(tmp_path: Path) -> None:
    old = [re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key) for key in state_of("densenet121")]
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    state = dict(zip(old, state_of("densenet121").values(), strict=True))
    torch.save(state, tmp_path / "old.pth")
    assert pretrained("densenet121", 5, str(tmp_path / "old.pth")).keys() == build("densenet121", 5).state_dict().keys()


def test_file_without_counts_of_batches_does(tmp_path: Path) -> None:
    """torchvision's oldest files are from before norms counted."""
    state = {key: tensor for key, tensor in state_of(SMALL).items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "weights.pth")
    assert len(pretrained(SMALL, 5, str(tmp_path / "weights.pth"))) == len(state)


Spoil = Callable[[dict[str, Tensor]], object]

SPOILT: dict[str, tuple[Spoil, str]] = {
    "lacks one": (lambda state: state.pop("features.0.0.weight"), f"which lacks 'features.0.0.weight' of {SMALL}"),
    "has one more": (lambda state: state.update(extra=torch.ones(1)), f"whose 'extra' is no part of {SMALL}"),
    "has another shape": (
        lambda state: state.update({"features.0.0.weight": torch.ones(16, 3, 5, 5)}),
        r"whose 'features.0.0.weight' \(16, 3, 5, 5\) does not fit .* it must be \(16, 3, 3, 3\)",
    ),
    "is a checkpoint": (
        lambda state: state.update(model={"features": torch.ones(1)}),  # type: ignore[call-overload]
        "which cannot be read: it must contain only named tensors",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_weights_of_another_network_are_named(what: str, tmp_path: Path) -> None:
    spoil, message = SPOILT[what]
    state = dict(state_of(SMALL))
    spoil(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(BrokenModel, match=message) as caught:
        pretrained(SMALL, 5, str(tmp_path / "weights.pth"))
    assert caught.value.field == "init"


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all, but long enough for a header", b"PK\x03\x04broken"])
def test_file_of_no_weights_is_refused(file: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(BrokenModel, match="which cannot be read"):
        pretrained(SMALL, 5, str(tmp_path / file))


def test_file_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFound, match=r"init is 'nowhere\.pth', which is not a file"):
        pretrained(SMALL, 5, "nowhere.pth")


def test_weights_file_runs_nothing(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"features.0.0.weight": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(BrokenModel, match="which cannot be read"):
        pretrained(SMALL, 5, str(tmp_path / "weights.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("source", [*SOURCES, "weights.pth"])
def test_network_without_such_weights_is_named(source: str) -> None:
    with pytest.raises(InvalidOption, match="mobilenet_v1_025") as caught:
        pretrained("mobilenet_v1_025", 5, source)
    assert (caught.value.field, caught.value.value) == ("init", source)


def test_lite0s_weights_are_of_lite0_alone() -> None:
    with pytest.raises(InvalidOption, match="must be used with efficientnet_lite0: it has no weights for resnet50"):
        pretrained("resnet50", 5, LITE0)
    with pytest.raises(InvalidOption, match="torchvision has no efficientnet_lite0"):
        pretrained("efficientnet_lite0", 5, "torchvision")


def test_every_transplant_is_into_a_base_network() -> None:
    assert set(TORCHVISION) <= BACKBONES.keys()
