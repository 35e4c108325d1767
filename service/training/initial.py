"""Starting from weights that exist: a model of the store, a weights file, or torchvision's ImageNet weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from service.errors import BrokenModel, InvalidOption, NotFound
from service.inference.predictor import load_network
from service.log import logger
from service.model_spec import SPEC, ModelSpec
from service.networks.msnet import MSNet
from service.networks.registry import backbone_name
from service.networks.transplant import TORCHVISION, from_torchvision
from service.store import ModelStore, read_spec
from service.training.data import Photographs
from service.training.options import TrainOptions

CLASSIFIERS = ("classifier.weight", "classifier.bias")
REPLACEABLE = (*CLASSIFIERS, "num_batches_tracked")


def initialise_from(network: nn.Module, options: TrainOptions, store: Path | None) -> ModelSpec | None:
    """Copy the weights that ``options.init`` names into ``network``, in place.

    A classifier for other classes keeps its fresh weights. ``torchvision`` starts the low and the high
    network from the same ImageNet weights.

    Returns:
        What the weights' own training is known by; None for a weights file and for ``torchvision``.

    Raises:
        InvalidOption: torchvision has no such network, or its weights cannot be fetched.
        NotFound: no such model or file.
        BrokenModel: a file that cannot be read, or weights of another network.
    """
    assert options.init is not None
    if options.init == "torchvision":
        backbones = (
            [network.backbone(stage) for stage in range(network.depth)] if isinstance(network, MSNet) else [network]
        )
        state = _torchvision_weights(backbone_name(options.network))
        for backbone in backbones:
            _copy(backbone, state, "torchvision")
        return None
    weights, spec = _stored_weights(options.init, store)
    missing = [name for name in network.state_dict() if name not in weights and not name.endswith(REPLACEABLE)]
    if missing:
        raise BrokenModel(f"init is {options.init!r}, which lacks {missing[0]!r} of this network", field="init")
    _copy(network, weights, options.init)
    return spec


def warn_of_other_split(before: ModelSpec, options: TrainOptions, photographs: Photographs) -> None:
    """Log that what ``options`` hold out of ``photographs`` may have been trained on by the model it starts from.

    It was not where the same photographs were split by the same seed, no smaller a share held out.
    """
    if not set(before.class_folders) & set(photographs.folders):
        return
    seed, share = (before.recipe.get(name) for name in ("seed", "calibration_share"))
    images = before.training.get("train_images", 0) + before.training.get("calibration_images", 0)
    same = before.class_folders == photographs.folders and images == len(photographs)
    if same and seed == options.seed and share is not None and share >= options.calibration_share:
        return
    logger.warning(
        "%s was trained on %s photographs with --seed %s --calibration-share %s: where they are these, it knows "
        "some that are held out now, and thresholds will promise too much; the same photographs with the same two "
        "options keep them apart",
        options.init, images or "?", seed, share,
    )  # fmt: skip


def _stored_weights(reference: str, store: Path | None) -> tuple[dict[str, Tensor], ModelSpec | None]:
    path = Path(reference)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        if not path.is_file():
            raise NotFound(f"init is {reference!r}, which is no file", field="init", value=reference)
        try:
            return load_file(path), None
        except SafetensorError as error:
            raise BrokenModel(f"init is {reference!r}, which cannot be read: {error}", field="init") from error
    folder = path if (path / SPEC).is_file() else _in_store(reference, store)
    spec = read_spec(folder)
    return load_network(folder, spec).state_dict(), spec


def _in_store(reference: str, store: Path | None) -> Path:
    nowhere = f"init is {reference!r}, which is no run folder"
    if store is None:
        raise NotFound(nowhere, field="init", value=reference)
    try:
        return ModelStore(store).find(reference)
    except (InvalidOption, NotFound) as error:
        raise NotFound(f"{nowhere} and no model: {error.message}", field="init", value=reference) from error


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    if name not in TORCHVISION:
        raise InvalidOption(
            "init", "torchvision", f"used with one of {', '.join(TORCHVISION)}: torchvision has no {name}"
        )
    from torchvision.models import get_model

    try:
        return from_torchvision(name, get_model(TORCHVISION[name], weights="DEFAULT").state_dict())
    except OSError as error:
        raise InvalidOption("init", "torchvision", f"reachable: its weights could not be fetched ({error})") from error


def _copy(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    own = network.state_dict()
    fitting = {}
    for name, tensor in state.items():
        if name in own and own[name].shape == tensor.shape:
            fitting[name] = tensor
        elif not name.endswith(CLASSIFIERS):
            raise BrokenModel(
                f"init is {source!r}, whose {name!r} {tuple(tensor.shape)} does not fit this network", field="init"
            )
    network.load_state_dict(fitting, strict=False)
