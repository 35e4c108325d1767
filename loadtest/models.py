"""The models that are served: the shipped one, and untrained ones with seeded weights in a store made for the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor, nn

from service.calibration.exit_rule import confidence, probabilities
from service.images.decode import decode, stack
from service.images.transforms import Preprocessing
from service.inference.predictor import Predictor
from service.inference.runtimes.base import normalise
from service.model_spec import Architecture, ModelSpec
from service.networks.backbone import Backbone
from service.networks.cascade import Cascade
from service.networks.cost import cost
from service.networks.registry import build, resolutions, stage_names
from service.settings import SHIPPED_STORE
from service.stages import StageSpec
from service.store import ModelStore, read_spec, write_spec, write_weights

CLASSES = 10
RESNET_RESOLUTION = 256
EXIT_RATE = 0.65
SEED = 0

# Photographs that norm statistics and classifiers are fitted to.
FITTED = 64

# Standard deviation of an untrained classifier's logits. At 2 the largest of ten probabilities lies between 0.2 and
# 0.95 for most photographs; with weights as initialised it is 0.11 for all, within what bfloat16 can tell apart.
LOGIT_DEVIATION = 2.0


class Network(StrEnum):
    """What is served: shipped models, and an untrained ResNet-18 at 128 and 256 pixels."""

    resnet18 = "resnet18"
    shipped_resnet18 = "shipped_resnet18"
    mobilenet = "mobilenet"


SHIPPED = {Network.shipped_resnet18: "imagenette-resnet18", Network.mobilenet: "imagenette-mobilenet"}


@dataclass(frozen=True, slots=True)
class Model:
    """One network, twice: as a cascade, and its single-scale base network at the same high resolution.

    Attributes:
        cascade, single: their folders, each in a model store.
    """

    network: Network
    cascade: Path
    single: Path

    @property
    def store(self) -> Path:
        """The store the cascade is in."""
        return self.cascade.parent.parent

    @property
    def reference(self) -> str:
        """The cascade's name in its store, with the version."""
        return f"{self.cascade.parent.name}/{self.cascade.name}"


def make(network: Network, store: Path, photographs: Sequence[bytes]) -> Model:
    """The model of ``network``; what is untrained of it is written into ``store``.

    The untrained one gets the threshold at which ``EXIT_RATE`` of the photographs exit, shipped ones have their own.
    """
    if network in SHIPPED:
        cascade = ModelStore(SHIPPED_STORE).find(SHIPPED[network])
        spec = read_spec(cascade)
        name = spec.architecture.network.removeprefix("ms_")
        single = _untrained(name, spec.preprocessing, store, photographs)
        return Model(network, cascade, single)
    preprocessing = Preprocessing.at(RESNET_RESOLUTION)
    cascade = _untrained("ms_resnet18", preprocessing, store, photographs)
    return Model(network, cascade, _untrained("resnet18", preprocessing, store, photographs))


def threshold_for(confidences: Sequence[float], exit_rate: float) -> float:
    """The threshold, midway between two confidences, at which ``exit_rate`` of the images exit, or the nearest share.

    Args:
        confidences: of the images, at least 2.
    """
    ordered = sorted(confidences)
    stay = min(max(round((1 - exit_rate) * len(ordered)), 1), len(ordered) - 1)
    return (ordered[stay - 1] + ordered[stay]) / 2


def _untrained(name: str, preprocessing: Preprocessing, store: Path, photographs: Sequence[bytes]) -> Path:
    """A model of network ``name``; a cascade's default threshold lets ``EXIT_RATE`` of the photographs exit."""
    folder = store / f"untrained-{name.replace('_', '-')}-{preprocessing.crop}" / "1"
    folder.mkdir(parents=True)
    torch.manual_seed(SEED)
    network = build(name, CLASSES)
    images = stack([decode(data, preprocessing) for data in photographs])
    _fit(network, normalise(images[:: -(-len(images) // FITTED)], preprocessing))
    costs, sides = cost(name, CLASSES, preprocessing.crop), resolutions(name, preprocessing.crop)
    labels = tuple(f"class {index}" for index in range(CLASSES))
    spec = ModelSpec(
        name=folder.parent.name,
        version=1,
        architecture=Architecture(name, CLASSES),
        classes=labels,
        class_folders=labels,
        preprocessing=preprocessing,
        stages=tuple(map(StageSpec, stage_names(name), sides, costs)),
        weights_sha256=write_weights(folder, network.state_dict()),
        dataset="nothing: its weights are as initialised",
    )
    write_spec(folder, spec)
    if network.depth > 1:
        predictor = Predictor.load(folder, "cpu")
        parts = torch.split(images, FITTED)
        sure = [confidence(probabilities(predictor.answers_to(part)[0], 1.0)) for part in parts]
        write_spec(folder, replace(spec, default_threshold=threshold_for(torch.cat(sure).tolist(), EXIT_RATE)))
    return folder


@torch.no_grad()
def _fit(network: Cascade, images: Tensor) -> None:
    """Give the network norm statistics and classifiers that fit the photographs, so that its answers differ."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # its statistics become those of what is seen
    network(images)
    network.eval()
    backbones = [module for module in network.modules() if isinstance(module, Backbone)]
    for backbone, logits in zip(backbones, network(images), strict=True):
        _spread(backbone.classifier, logits)


def _spread(classifier: nn.Module, logits: Tensor) -> None:
    """Change a classifier so that the logits it gave have mean 0 and ``LOGIT_DEVIATION``, class by class."""
    last = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)][-1]
    scale = LOGIT_DEVIATION / logits.std(dim=0)
    last.weight.mul_(scale[:, None])
    last.bias.sub_(logits.mean(dim=0)).mul_(scale)
