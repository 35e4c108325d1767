"""Imports a network with published ImageNet weights as a single-stage model of the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torchvision.models import get_model_weights

import service
from service.errors import DataError, InvalidOption
from service.evaluation.publish import CARD
from service.images.transforms import Preprocessing
from service.model_spec import Architecture, ModelSpec
from service.networks.cost import cost
from service.networks.efficientnet_lite import MEAN, STD
from service.networks.registry import backbone_name, build, stage_names
from service.networks.transplant import LITE0_NETWORK, OPTIONS, pretrained
from service.stages import StageSpec
from service.store import ModelStore, write_spec, write_weights

LITE0_RESIZE, LITE0_CROP = 256, 224


@dataclass(frozen=True, slots=True)
class Source:
    """What is imported.

    Attributes:
        network: a single-scale network's name.
        weights: ``torchvision``, ``efficientnet-lite0``, or a file of such weights.
        resolution: pixels of its input; None takes what the weights were released for.
        labels: of its logits, in order; None takes ImageNet's 1,000.
    """

    network: str
    weights: str
    resolution: int | None = None
    labels: Sequence[str] | None = None


def import_pretrained(source: Source, store: ModelStore, name: str) -> ModelSpec:
    """Add the network of ``source`` to ``store`` as the next version of model ``name``.

    Raises:
        InvalidOption: not a single-scale network, weights that do not exist for it, or an invalid ``name``.
        NotFound, BrokenModel: see ``pretrained``.
        DataError: the number of labels differs from that of the logits, or two labels are equal.
    """
    store.next_version(name)
    labels = tuple(imagenet_labels() if source.labels is None else source.labels)
    if len(set(labels)) != len(labels):
        twice = next(label for index, label in enumerate(labels) if label in labels[:index])
        raise DataError(f"labels must be different: {twice!r} is given twice", field="labels", value=twice)
    if backbone_name(source.network) != source.network:
        raise InvalidOption("network", source.network, "a single-scale one: others have no published weights")
    options = OPTIONS.get(source.network, {})
    network = build(source.network, len(labels), options)
    state = pretrained(source.network, len(labels), source.weights, option="weights")
    missing = [key for key in network.state_dict() if key not in state and not key.endswith("num_batches_tracked")]
    if missing:
        raise DataError(
            f"{source.weights} has no {missing[0]} for {len(labels)} labels: it was trained on other classes",
            field="labels",
            value=len(labels),
        )
    network.load_state_dict(state, strict=False)
    preprocessing = preprocessing_of(source.network, source.resolution)
    side = preprocessing.crop
    (mmacs,) = cost(source.network, len(labels), side, options)
    with store.new_version(name) as (version, folder):
        spec = ModelSpec(
            name=name,
            version=version,
            architecture=Architecture(source.network, len(labels), options),
            classes=labels,
            class_folders=labels,
            preprocessing=preprocessing,
            stages=(StageSpec(stage_names(source.network)[0], side, mmacs),),
            weights_sha256=write_weights(folder, network.state_dict()),
            dataset="ImageNet-1k" if source.labels is None else "",
            recipe={"imported": source.weights},
            code_version=service.__version__,
        )
        (folder / CARD).write_text(card(spec))
        write_spec(folder, spec)  # last: it is what makes the folder a model
    return spec


def imagenet_labels() -> list[str]:
    """ImageNet's 1,000 classes, as torchvision names them."""
    labels: list[str] = get_model_weights("resnet18")["DEFAULT"].meta["categories"]
    return labels


def preprocessing_of(network: str, resolution: int | None) -> Preprocessing:
    """The pixels that published weights expect, at ``resolution`` or at the one they were released for.

    Resized bilinearly, where some releases say bicubically.
    """
    if network == LITE0_NETWORK:
        resize, crop, mean, std = LITE0_RESIZE, LITE0_CROP, MEAN, STD
    else:
        released = get_model_weights(network)["DEFAULT"].transforms()
        (resize,), (crop,) = released.resize_size, released.crop_size
        mean, std = (cast("tuple[float, float, float]", tuple(each)) for each in (released.mean, released.std))
    side = crop if resolution is None else resolution
    return Preprocessing(round(resize * side / crop), side, mean, std)


def card(spec: ModelSpec) -> str:
    """What is known of it, Markdown."""
    return f"""# {spec.name}, version {spec.version}

{spec.architecture.network} at {spec.preprocessing.crop} pixels, with the weights of {spec.recipe["imported"]}: \
{spec.mmacs[0]:.1f} million multiply-adds per image.
They were trained on {spec.dataset or "the data that their publisher names"}, and keep their publisher's licence.

The model knows {len(spec.classes)} classes. **Any picture at all gets one of their labels.**

Its accuracy was not measured here. Photographs used to train the weights cannot measure it.
"""
