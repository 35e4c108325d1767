"""Builds a cascade from finished models, cheapest first, without training: the naive cascade of the paper's section
3.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import torch

import service
from service.errors import DataError, InvalidOption
from service.evaluation.publish import CARD
from service.images.transforms import Preprocessing
from service.inference.predictor import load_network
from service.inference.runtimes.base import channels
from service.log import logger
from service.model_spec import Architecture, ModelSpec
from service.networks.cascade import Cascade
from service.networks.composed import Composed
from service.networks.cost import stage_costs
from service.networks.registry import COMPOSED, build
from service.stages import StageSpec
from service.store import ModelStore, read_spec, write_spec, write_weights
from service.training.options import MAX_RESOLUTION
from service.training.trained_on import knows_trained_on, merge_trained_on

LEAST_PIXELS = 32  # the stride of most networks: a smaller image has less than one place in the last map

NAME_LETTERS = 48  # of a model's name in its stages', so that pixels and a number have room

# What tells, in models that kept no digests of their photographs, which ones were held out.
SPLIT = ("seed", "calibration_share", "train_images", "calibration_images")


@dataclass(frozen=True, slots=True)
class Part:
    """A model whose stages become stages of a cascade.

    Attributes:
        asked: its name as given by the user.
        folder: its folder.
        pixels: resolution of its last stage; the others are scaled by the same factor. None keeps all resolutions.
    """

    asked: str
    folder: Path
    pixels: int | None = None


@dataclass(frozen=True, slots=True)
class _Stage:
    """A stage of the cascade. ``spec`` lacks only the cost; stage ``stage`` of network ``member`` computes it."""

    asked: str
    spec: StageSpec
    member: int
    stage: int


def compose(parts: Sequence[Part], store: ModelStore, name: str) -> ModelSpec:
    """Store the stages of ``parts``, in order, as the next version of model ``name`` in ``store``.

    A model that is used twice is stored once. Temperatures are those of the models; a threshold requires calibration.

    Raises:
        NotFound, BrokenModel: see ``store``.
        DataError: the models have different classes.
        InvalidOption: there are fewer than two stages, sizes are not divisible or out of bounds, costs do not increase,
            or ``name`` is not a valid model name.
    """
    store.next_version(name)  # before anything large is read
    specs = [read_spec(part.folder) for part in parts]
    for part, spec in zip(parts[1:], specs[1:], strict=True):
        _check_classes(parts[0].asked, specs[0], part.asked, spec)
    networks = _Networks(len(specs[-1].classes))
    stages = [stage for part, spec in zip(parts, specs, strict=True) for stage in networks.stages(part, spec)]
    if len(stages) < 2:
        raise InvalidOption(
            "stage", [part.asked for part in parts], "given at least twice: a cascade has two or more stages"
        )
    options = {"members": networks.options, "order": [[stage.member, stage.stage] for stage in stages]}
    costed = _costed(stages, Architecture(COMPOSED, networks.num_classes, options))
    with store.new_version(name) as (version, folder):
        network = Composed(networks.members, [(stage.member, stage.stage) for stage in stages])
        spec = ModelSpec(
            name=name,
            version=version,
            architecture=Architecture(COMPOSED, networks.num_classes, options),
            classes=specs[-1].classes,
            class_folders=specs[-1].class_folders,
            preprocessing=_preprocessing(costed, specs[-1]),
            stages=_named(costed),
            weights_sha256=write_weights(folder, network.state_dict()),
            dataset=", ".join(dict.fromkeys(spec.dataset for spec in specs if spec.dataset)),
            recipe={"composed_of": [{"model": s.title, "weights_sha256": s.weights_sha256} for s in specs]},
            code_version=service.__version__,
        )
        spec = _with_split(spec, specs, folder, [part.folder for part in parts])
        (folder / CARD).write_text(card(spec))
        write_spec(folder, spec)  # last: it is what makes the folder a model
    return spec


class _Networks:
    """The networks of a cascade. Each is listed once, even if it is used several times or under several names."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.members: list[Cascade] = []
        self.options: list[Mapping[str, Any]] = []
        self._first: dict[tuple[str, str], int] = {}

    def stages(self, part: Part, spec: ModelSpec) -> list[_Stage]:
        """The stages of ``part``, whose spec is ``spec``. For a composed model these are the stages of its parts."""
        first, order = self._add(part.folder, spec)
        sides = _sides(part, spec)
        found = []
        for index, ((member, stage), side) in enumerate(zip(order, sides, strict=True)):
            pixels = channels(spec, index)
            named = replace(spec.stages[index], name=_stage_name(spec.name, side), resolution=side)
            found.append(_Stage(part.asked, replace(named, mean=pixels.mean, std=pixels.std), first + member, stage))
        return found

    def _add(self, folder: Path, spec: ModelSpec) -> tuple[int, Sequence[tuple[int, int]]]:
        """The index of the model's first network, and for each of its stages the network and stage that compute it."""
        of = spec.architecture
        key = spec.weights_sha256, repr(of)
        is_new = key not in self._first
        first = self._first.setdefault(key, len(self.members))
        if of.network == COMPOSED:
            order, options = [(member, stage) for member, stage in of.options["order"]], of.options["members"]
        else:
            order = [(0, stage) for stage in range(spec.depth)]
            options = [{"network": of.network, "options": dict(of.options)}]
        if is_new:
            network = load_network(folder, spec)
            members = network.members if isinstance(network, Composed) else [network]
            self.members += [member for member in members if isinstance(member, Cascade)]
            self.options += options
        return first, order


def _stage_name(model: str, side: int) -> str:
    """``model-side`` with only the characters allowed in stage names, because a run folder's name may contain
    others.
    """
    letters = re.sub(r"[^a-z0-9._-]", "-", model.lower()).lstrip("._-") or "model"
    return f"{letters[:NAME_LETTERS]}-{side}"


def _check_classes(asked: str, spec: ModelSpec, other_asked: str, other: ModelSpec) -> None:
    """Check that classes are equal. Raises DataError naming the first class that differs."""
    for what, ours, theirs in (
        ("folder", spec.class_folders, other.class_folders),
        ("label", spec.classes, other.classes),
    ):
        for index, (one, two) in enumerate(zip_longest(ours, theirs)):
            if one != two:
                raise DataError(
                    f"stages must have the same classes: the {what} of class {index} is {one!r} in {asked} and {two!r} "
                    f"in {other_asked}",
                    field="stage",
                    value=two,
                    bound=one,
                )


def _sides(part: Part, spec: ModelSpec) -> list[int]:
    """The resolutions of the model's stages when its last one has ``part.pixels``. Raises InvalidOption."""
    last = spec.resolutions[-1]
    pixels = part.pixels or last
    sides = []
    for side in spec.resolutions:
        if side * pixels % last:
            raise InvalidOption(
                "stage",
                part.asked,
                f"pixels divisible for all of its stages: {' / '.join(map(str, spec.resolutions))} becomes "
                f"{' / '.join(f'{each * pixels / last:g}' for each in spec.resolutions)}",
            )
        sides.append(side * pixels // last)
    if min(sides) < LEAST_PIXELS or max(sides) > MAX_RESOLUTION:
        raise InvalidOption(
            "stage",
            part.asked,
            f"at {LEAST_PIXELS} to {MAX_RESOLUTION} pixels for each of its stages: {' / '.join(map(str, sides))}",
        )
    return sides


def _costed(stages: Sequence[_Stage], architecture: Architecture) -> list[StageSpec]:
    """The stages with their costs. Raises InvalidOption if the costs do not increase."""
    with torch.device("meta"):
        network = build(architecture.network, architecture.num_classes, architecture.options)
    costs = stage_costs(network, [stage.spec.resolution for stage in stages])
    for (before, less), (after, more) in pairwise(zip(stages, costs, strict=True)):
        if more <= less:
            raise InvalidOption(
                "stage",
                after.asked,
                f"more expensive than the previous stage: {after.spec.name} takes {more:.4g} million multiply-adds, "
                f"{before.spec.name} {less:.4g}",
            )
    return [replace(stage.spec, mmacs=mmacs) for stage, mmacs in zip(stages, costs, strict=True)]


def _preprocessing(stages: Sequence[StageSpec], last: ModelSpec) -> Preprocessing:
    """Preprocessing with the largest stage's resolution, and with the crop of the last model and the normalisation of
    its last stage.
    """
    crop = max(stage.resolution for stage in stages)
    pixels = channels(last, last.depth - 1)
    return Preprocessing(round(crop * pixels.resize / pixels.crop), crop, pixels.mean, pixels.std)


def _named(stages: Sequence[StageSpec]) -> tuple[StageSpec, ...]:
    """The stages with unique names. Mean and standard deviation are set only if they differ from the last stage's."""
    found: list[StageSpec] = []
    shared = stages[-1].mean, stages[-1].std
    for stage in stages:
        name, count = stage.name, 1
        while name in {other.name for other in found}:
            count += 1
            name = f"{stage.name}-{count}"
        named = replace(stage, name=name)
        found.append(replace(named, mean=None, std=None) if (stage.mean, stage.std) == shared else named)
    return tuple(found)


def _with_split(spec: ModelSpec, specs: Sequence[ModelSpec], folder: Path, sources: Sequence[Path]) -> ModelSpec:
    """``spec`` with the data from which calibration finds photographs that none of the models was trained on."""
    if all(map(knows_trained_on, sources)):
        return replace(spec, files=merge_trained_on(folder, sources))
    if all("imported" in each.recipe for each in specs):  # trained elsewhere, on what nobody here can tell
        return spec
    told = [{**each.recipe, **each.training} for each in specs]
    splits = [{name: each.get(name) for name in SPLIT} for each in told]
    if None in splits[0].values() or any(split != splits[0] for split in splits):
        logger.warning(
            "what the models of %s held out is not the same: calibrate it with --split or other photographs", spec.title
        )
        return spec
    seed, share, *counts = splits[0].values()
    recipe = {**spec.recipe, "seed": seed, "calibration_share": share}
    return replace(spec, recipe=recipe, training=dict(zip(SPLIT[2:], counts, strict=True)))


def card(spec: ModelSpec) -> str:
    """The model card before calibration and evaluation, in Markdown."""
    models = spec.recipe["composed_of"]
    rows = "\n".join(
        f"| {stage.name} | {stage.resolution} | {stage.mmacs:.1f} | {total:.1f} |"
        for stage, total in zip(spec.stages, spec.mmacs_up_to, strict=True)
    )
    return f"""# {spec.name}, version {spec.version}

A cascade of finished models that share no features: {", ".join(model["model"] for model in models)}.
An image exits at the first confident stage, otherwise at the last one.

The model knows {len(spec.classes)} classes: {", ".join(spec.classes)}. **Any picture at all gets one of these labels.**

| stage | pixels | multiply-adds of the stage, M | up to and including it, M |
|---|---|---|---|
{rows}

Its threshold is 1, so nothing exits early and nothing is certified of it, until `lowfirst calibrate \
{spec.reference} --data DIR` has used photographs of these classes, or with `--unlabelled` any photographs like those \
to be classified.
"""
