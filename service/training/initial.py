"""Start from existing weights: a model of the store, a weights file, or a base network's ImageNet weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from service.errors import BrokenModel, InvalidOption, NotFound
from service.images.transforms import Preprocessing
from service.inference.predictor import load_network
from service.log import logger
from service.model_spec import SPEC, ModelSpec
from service.networks.backbone import Backbone
from service.networks.efficientnet_lite import MEAN, STD
from service.networks.msnet import STAGE_NAMES, MSNet
from service.networks.registry import backbone_name
from service.networks.transplant import LITE0_NETWORK, SOURCES, TORCHVISION, pretrained, read
from service.store import ModelStore, read_spec
from service.training.data import Photographs
from service.training.options import TrainOptions
from service.training.trained_on import digests, knows_trained_on, trained_on

OURS = "blocks.0.body."  # part of a name in every state of a network here, and in none of other people's


@dataclass(frozen=True, slots=True)
class Before:
    """The model that training starts from, and digests of its training photographs; None if unknown."""

    spec: ModelSpec
    trained_on: frozenset[bytes] | None


def initialise_from(network: nn.Module, options: TrainOptions, store: Path | None) -> Before | None:
    """Copy the weights that ``options.init`` names into ``network``, in place.

    A classifier for other classes keeps its fresh weights. ImageNet weights of a base network (``torchvision``,
    ``efficientnet-lite0``, or a file of either) start each of its copies in a multi-scale network, and so do the
    weights of a single-scale model. A base network takes the stage of a multi-scale model with the nearest resolution.

    Returns:
        The model that the weights come from; None for a weights file and for ImageNet weights.

    Raises:
        InvalidOption: there are no such ImageNet weights for this network, or they cannot be downloaded.
        NotFound: no such model or file.
        BrokenModel: an unreadable file, or weights of another network.
    """
    assert options.init is not None
    if _is_of_others(options):
        copies = [module for module in network.modules() if isinstance(module, Backbone)]
        state = pretrained(backbone_name(options.network), copies[0].num_classes, options.init)
        for copy in copies:
            _copy(copy, state, options.init)
        return None
    weights, before = _stored_weights(options.init, store)
    weights = _for_stages(network, weights, options.resolution, before)
    missing = [name for name in network.state_dict() if name not in weights and not _is_replaceable(name)]
    if missing:
        raise BrokenModel(f"init is {options.init!r}, which lacks {missing[0]!r} of this network", field="init")
    _copy(network, weights, options.init)
    return before


def preprocessing(options: TrainOptions, before: Before | None) -> Preprocessing:
    """The preprocessing for training: normalised as the weights of ``options.init`` expect."""
    pixels = Preprocessing.at(options.resolution)
    if before is not None:
        known = before.spec.preprocessing
        return replace(pixels, mean=known.mean, std=known.std)
    if options.init is not None and _is_of_others(options) and backbone_name(options.network) == LITE0_NETWORK:
        return replace(pixels, mean=MEAN, std=STD)
    return pixels


def warn_of_known(before: Before, options: TrainOptions, photographs: Photographs, held_out: Photographs) -> None:
    """Log how many ``held_out`` photographs the initial model was trained on: they cannot certify.

    A model of an older version may have been trained on some, unless the same ``photographs`` were split by the same
    seed, with at least the same share held out.
    """
    if before.trained_on is None:
        _warn_of_other_split(before.spec, options, photographs)
        return
    known = sum(digest in before.trained_on for digest in digests(held_out.paths))
    if known:
        logger.warning(
            "%s was trained on %d of the %d photographs held out now, so %d are left for calibration; use its own "
            "--seed and --calibration-share to avoid this",
            options.init, known, len(held_out), len(held_out) - known,
        )  # fmt: skip


def _warn_of_other_split(before: ModelSpec, options: TrainOptions, photographs: Photographs) -> None:
    if not set(before.class_folders) & set(photographs.folders):
        return
    seed, share = (before.recipe.get(name) for name in ("seed", "calibration_share"))
    images = before.training.get("train_images", 0) + before.training.get("calibration_images", 0)
    same = before.class_folders == photographs.folders and images == len(photographs)
    if same and seed == options.seed and share is not None and share >= options.calibration_share:
        return
    logger.warning(
        "%s was trained on %s photographs with --seed %s --calibration-share %s: if these are the same "
        "photographs, it knows some held-out ones, and thresholds will promise too much; use these two options to "
        "avoid this",
        options.init, images or "?", seed, share,
    )  # fmt: skip


def _is_of_others(options: TrainOptions) -> bool:
    """Whether ``init`` names weights that use other parameter names."""
    assert options.init is not None
    path = Path(options.init)
    if path.suffix == ".safetensors" and path.is_file():  # either's
        return backbone_name(options.network) in TORCHVISION and not any(OURS in name for name in read(path))
    return options.init in SOURCES or path.suffix in (".pth", ".pt")


def _stored_weights(reference: str, store: Path | None) -> tuple[dict[str, Tensor], Before | None]:
    path = Path(reference)
    if path.suffix == ".safetensors":
        return read(path), None
    folder = path if (path / SPEC).is_file() else _in_store(reference, store)
    spec = read_spec(folder)
    return load_network(folder, spec).state_dict(), Before(
        spec, trained_on(folder) if knows_trained_on(folder) else None
    )


def _in_store(reference: str, store: Path | None) -> Path:
    nowhere = f"init is {reference!r}, which is not a run folder"
    if store is None:
        raise NotFound(nowhere, field="init", value=reference)
    try:
        return ModelStore(store).find(reference)
    except (InvalidOption, NotFound) as error:
        raise NotFound(f"{nowhere} and no model: {error.message}", field="init", value=reference) from error


def _for_stages(
    network: nn.Module, weights: Mapping[str, Tensor], resolution: int, before: Before | None
) -> dict[str, Tensor]:
    """Rename ``weights`` for ``network``, if only one of the two has several stages.

    Gates that ``weights`` lack stay closed before a network trained without features from below, and are opened before
    one trained with them.
    """
    is_single = any(name.startswith(OURS) for name in weights)
    if isinstance(network, MSNet):
        gates = {name: gate for name, gate in network.state_dict().items() if name.startswith("gates.")}
        if is_single:
            return gates | {f"{stage}.{name}": tensor for stage in network.names for name, tensor in weights.items()}
        return {name: torch.ones_like(gate) for name, gate in gates.items()} | dict(weights)
    stage = "" if is_single else _nearest(weights, resolution, before)
    return {name.removeprefix(stage): tensor for name, tensor in weights.items() if name.startswith(stage)}


def _nearest(weights: Mapping[str, Tensor], resolution: int, before: Before | None) -> str:
    """Prefix of the stage of a multi-scale network with the resolution nearest to ``resolution``.

    The last stage if resolutions are unknown; empty if ``weights`` are not of such a network.
    """
    known = {weight.partition(f".{OURS}")[0] for weight in weights if f".{OURS}" in weight}
    stages = [stage for stage in STAGE_NAMES[max(STAGE_NAMES)] if stage in known]
    sides = {stage.name: stage.resolution for stage in before.spec.stages} if before is not None else {}
    found = min(reversed(stages), key=lambda name: abs(sides.get(name, resolution) - resolution), default=None)
    return f"{found}." if found else ""


def _copy(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    own = network.state_dict()
    fitting = {}
    for name, tensor in state.items():
        if name in own and own[name].shape == tensor.shape:
            fitting[name] = tensor
        elif not _is_replaceable(name):
            raise BrokenModel(
                f"init is {source!r}, whose {name!r} {tuple(tensor.shape)} does not fit this network", field="init"
            )
    network.load_state_dict(fitting, strict=False)


def _is_replaceable(name: str) -> bool:
    return "classifier" in name.split(".") or name.endswith("num_batches_tracked")
