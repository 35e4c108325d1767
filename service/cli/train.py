"""``lowfirst train``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING
from enum import StrEnum
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.progress import BarColumn, Progress, TextColumn

from service.cli.console import errors, is_first_process, model_store, name_unreadable, next_step, say, warn
from service.errors import InvalidOption
from service.training.options import TrainOptions, adapt_recipe, described, paper_recipe

if TYPE_CHECKING:
    from service.training.loop import Progress as TrainProgress
    from service.training.run_folder import EpochLog
    from service.training.summary import Summary

RECIPE = (
    "Defaults of the options above. default: training from scratch, about an hour on a small machine; adapt: from "
    "existing weights, with --init; paper: the recipe of the paper."
)


class Recipe(StrEnum):
    """Sets of defaults."""

    default = "default"
    adapt = "adapt"
    paper = "paper"


def train(context: typer.Context, recipe: Recipe, resume: bool, **values: Any) -> None:
    """Train a network on folders of photographs. Interrupt at any time; --resume continues to the same result."""
    from service.training.loop import train as run

    options = _options(context, recipe, values)
    try:
        with _bar() as bar:
            finished = run(
                options,
                resume=resume,
                store=model_store().root,
                on_start=_print_summary,
                on_step=bar.show,
                on_epoch=bar.print_epoch,
            )
    except KeyboardInterrupt:
        if is_first_process():
            warn(f"interrupted; to continue {options.out}, run the same command with --resume")
        raise typer.Exit(130) from None
    if is_first_process():
        name_unreadable(finished.unreadable)
        next_step(*_next(options), done=f"trained {options.out}")


def _signature() -> Signature:
    """The parameters of ``train`` as typer reads them: every field of ``TrainOptions``, a recipe and --resume."""
    hints = get_type_hints(TrainOptions)
    parameters = [_parameter("context", typer.Context)]
    for each in dataclasses.fields(TrainOptions):
        says = described()[each.name].help
        if each.name == "network":
            parameters.append(_parameter(each.name, Annotated[str, typer.Argument(help=says)]))
        elif each.name == "network_options":
            given = typer.Option("--option", help=says)
            parameters.append(_parameter(each.name, Annotated[list[str] | None, given], None))
        else:
            default = Parameter.empty if each.default is MISSING else each.default
            parameters.append(_parameter(each.name, Annotated[hints[each.name], typer.Option(help=says)], default))
    parameters += [
        _parameter("recipe", Annotated[Recipe, typer.Option(help=RECIPE)], Recipe.default),
        _parameter("resume", Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")], False),
    ]
    return Signature(parameters)


def _parameter(name: str, kind: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


train.__signature__ = _signature()  # type: ignore[attr-defined]


def _options(context: typer.Context, recipe: Recipe, values: dict[str, Any]) -> TrainOptions:
    """The options: given ones, otherwise those of the recipe, otherwise the defaults."""
    sources = {name: context.get_parameter_source(name) for name in values}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    if recipe is Recipe.adapt and values["init"] is None:
        raise InvalidOption(
            "init", None, "given for --recipe adapt, such as efficientnet-lite0 or a model of the store"
        )
    of_recipe = _of_recipe(recipe, values["network"])
    asked = _network_options(values["network_options"] or [])
    network_options = {**of_recipe.pop("network_options", {}), **asked}
    taken = {name: value for name, value in of_recipe.items() if name not in given}
    return TrainOptions(**values | taken | {"network_options": network_options})


def _of_recipe(recipe: Recipe, network: str) -> dict[str, Any]:
    match recipe:
        case Recipe.adapt:
            return adapt_recipe(network)
        case Recipe.paper:
            return paper_recipe(network)
        case Recipe.default:
            return {}


def _next(options: TrainOptions) -> tuple[str | Path, ...]:
    """The next command."""
    if len(options.stages) == 1:  # it has no exit to calibrate
        return "report", options.out, "--data", options.data, "--out", "report"
    data = options.data if options.calibration_share else "DIR_OF_OTHER_PHOTOGRAPHS"
    return "calibrate", options.out, "--data", data


def _print_summary(summary: Summary) -> None:
    for line in summary.lines():
        say(line)
    for warning in summary.warnings:
        warn(f"warning: {warning}")


def _network_options(pairs: list[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InvalidOption("option", pair, "KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


class _Bar:
    """Steps of the current epoch, below the lines of finished ones."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", numbers="")

    def show(self, now: TrainProgress) -> None:
        """Draw a step."""
        minutes, seconds = divmod(round(now.seconds_left), 60)
        self._bar.update(
            self._task,
            description=f"epoch {now.epoch}/{now.epochs} at {now.resolution}",
            completed=now.step,
            total=now.steps,
            numbers=f"loss {now.loss:.3f}  {_accuracies(now.accuracy)}  "
            f"{now.images_per_second:.0f} images/s  {minutes}:{seconds:02d} left",
        )

    def print_epoch(self, line: EpochLog) -> None:
        """On standard output, with the bar on standard error out of the way."""
        self._bar.stop()
        say(
            f"epoch {line.epoch}  {line.resolution} px  loss {line.loss:.3f}  train {_accuracies(line.accuracy)}  "
            f"held out {_accuracies(line.held_out)}  {line.images_per_second:.0f} images/s, waited {line.waited:.0%}"
        )
        self._bar.start()


@contextmanager
def _bar() -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[numbers]}"))
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        yield _Bar(bar)


def _accuracies(accuracy: Mapping[str, float]) -> str:
    """``low/high 0.812/0.874``, of each stage."""
    return f"{'/'.join(accuracy)} {'/'.join(f'{share:.3f}' for share in accuracy.values())}"
