"""A cascade of finished models, cheapest first, without training: the naive one of the paper's section 3.1."""

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
        asked: how it was named.
        folder: where it is.
        pixels: of its last stage, the others scaled alike; None leaves all as they are.
    """

    asked: str
    folder: Path
    pixels: int | None = None


@dataclass(frozen=True, slots=True)
class _Stage:
    """``spec`` is complete but for its cost; ``member`` and ``stage`` say what of the network computes it."""

    asked: str
    spec: StageSpec
    member: int
    stage: int


def compose(parts: Sequence[Part], store: ModelStore, name: str) -> ModelSpec:
    """Put the stages of ``parts``, in order, into ``store`` as the next version of model ``name``.

    A model that is used twice is stored once. Temperatures are the models' own; thresholds take a calibration.

    Raises:
        NotFound, BrokenModel: see ``store``.
        DataError: classes that differ.
        InvalidOption: fewer than two stages, sizes that do not divide or are out of bounds, costs that do not grow, or
            ``name`` cannot be a model's name.
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
    """The networks that a cascade is made of, each once, however often and by whatever name it is used."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.members: list[Cascade] = []
        self.options: list[Mapping[str, Any]] = []
        self._first: dict[tuple[str, str], int] = {}

    def stages(self, part: Part, spec: ModelSpec) -> list[_Stage]:
        """The stages of ``part``, whose spec is ``spec``. Those of a composed model are those of its own parts."""
        first, order = self._add(part.folder, spec)
        sides = _sides(part, spec)
        found = []
        for index, ((member, stage), side) in enumerate(zip(order, sides, strict=True)):
            pixels = channels(spec, index)
            named = replace(spec.stages[index], name=_stage_name(spec.name, side), resolution=side)
            found.append(_Stage(part.asked, replace(named, mean=pixels.mean, std=pixels.std), first + member, stage))
        return found

    def _add(self, folder: Path, spec: ModelSpec) -> tuple[int, Sequence[tuple[int, int]]]:
        """The place of the model's first network, and which network and stage of them computes each of its stages."""
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
    """``model-side``, of the letters that stages' names may have: a run folder's name may have any."""
    letters = re.sub(r"[^a-z0-9._-]", "-", model.lower()).lstrip("._-") or "model"
    return f"{letters[:NAME_LETTERS]}-{side}"


def _check_classes(asked: str, spec: ModelSpec, other_asked: str, other: ModelSpec) -> None:
    """Raises DataError naming the first class that differs."""
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
    """The stages with what each costs. Raises InvalidOption where that does not grow."""
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
    """The largest stage's pixels, cut out of a photograph as the last model does, normalised as its last stage is."""
    crop = max(stage.resolution for stage in stages)
    pixels = channels(last, last.depth - 1)
    return Preprocessing(round(crop * pixels.resize / pixels.crop), crop, pixels.mean, pixels.std)


def _named(stages: Sequence[StageSpec]) -> tuple[StageSpec, ...]:
    """Each with a name of its own, and with a mean and deviation only where they are not the last one's."""
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
    """``spec`` with what calibration takes to tell which photographs none of its models was trained on."""
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
    """What is known of it before it is calibrated and evaluated, Markdown."""
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
