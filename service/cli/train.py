"""``lowfirst train``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn

from service.cli.console import (
    Device,
    Precision,
    Workers,
    errors,
    is_first_process,
    model_store,
    name_unreadable,
    output,
)
from service.errors import InvalidOption

if TYPE_CHECKING:
    from service.training.loop import Progress as TrainProgress
    from service.training.run_folder import EpochLog


class Recipe(StrEnum):
    """Sets of defaults."""

    default = "default"
    paper = "paper"


def train(
    network: Annotated[str, typer.Argument(help="Network, see `lowfirst models --architectures`.")],
    data: Annotated[
        Path, typer.Option(help="Folder with train/<class>/ photographs, or the class folders themselves.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    resolution: Annotated[int | None, typer.Option(help="High resolution, pixels. [default: 192]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data. [default: 40, paper: 120]")] = None,
    recipe: Annotated[Recipe, typer.Option(help="default: best in an hour of a small machine; paper: the paper's.")] = (
        Recipe.default
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    init: Annotated[
        str | None,
        typer.Option(
            help="Start from a model of the store, a run folder, a weights file (.safetensors or torchvision's .pth), "
            "or ImageNet weights: torchvision, efficientnet-lite0."
        ),
    ] = None,
    class_names: Annotated[Path | None, typer.Option(help="JSON file: class folder -> label.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="What the model card calls the data. [default: its folder]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step, over all processes.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Its peak.")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine or step.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Share of the run with a linear warm-up.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="On weights of convolutions and linear layers.")] = None,
    min_scale: Annotated[float | None, typer.Option(help="Smallest share of a photograph that a crop takes.")] = None,
    augment: Annotated[bool | None, typer.Option(help="Change the shape or the colours of every crop.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of a target that all classes get.")] = None,
    progressive: Annotated[bool | None, typer.Option(help="Smaller crops in the first epochs.")] = None,
    distillation: Annotated[
        float | None, typer.Option(help="Weight of what the low head learns from the high one; 0: off.")
    ] = None,
    ema_epochs: Annotated[float | None, typer.Option(help="Time constant of the weight average; 0: off.")] = None,
    calibration_share: Annotated[float | None, typer.Option(help="Share held out for calibration.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order, crops and the held-out split.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the network, KEY=VALUE: fusion=after_relu, projection=false.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = None,
    decoded_gb: Annotated[
        float | None,
        typer.Option(help="Memory for photographs decoded once, of each GPU or the machine; 0: none. [default: 4]"),
    ] = None,
) -> None:
    """Train a network on folders of photographs. Interrupt at any time; --resume goes on to the same result."""
    from service.training.loop import train as run
    from service.training.options import TrainOptions, paper_recipe

    given = {
        "resolution": resolution,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "min_scale": min_scale,
        "augment": augment,
        "label_smoothing": label_smoothing,
        "progressive": progressive,
        "distillation": distillation,
        "ema_epochs": ema_epochs,
        "calibration_share": calibration_share,
        "seed": seed,
        "decoded_gb": decoded_gb,
    }
    options = TrainOptions(
        network=network,
        data=data,
        out=out,
        init=init,
        class_names=class_names,
        dataset=dataset,
        network_options=_network_options(option or []),
        device=device,
        precision=precision,
        workers=workers,
        **{
            **(paper_recipe(network) if recipe is Recipe.paper else {}),
            **{name: value for name, value in given.items() if value is not None},
        },
    )
    try:
        with _bar() as show:
            finished = run(options, resume=resume, store=model_store().root, on_step=show, on_epoch=_print_epoch)
    except KeyboardInterrupt:
        if is_first_process():
            say = f"interrupted; the same command with --resume goes on with {out}"
            errors.print(say, style="yellow", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if is_first_process():
        name_unreadable(finished.unreadable)
        then = f"calibrate {out} --data {data}"
        if len(options.stages) == 1:  # it has no exit to calibrate
            then = f"report {out} RUNS… --data {data} --out FOLDER"
        say = f"trained {out}; next: lowfirst {then}"
        output.print(say, highlight=False, markup=False, soft_wrap=True)


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


@contextmanager
def _bar() -> Iterator[Callable[[TrainProgress], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[numbers]}"))
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", numbers="")

        def show(now: TrainProgress) -> None:
            minutes, seconds = divmod(round(now.seconds_left), 60)
            bar.update(
                task,
                description=f"epoch {now.epoch}/{now.epochs} at {now.resolution}",
                completed=now.step,
                total=now.steps,
                numbers=f"loss {now.loss:.3f}  {_accuracies(now.accuracy)}  "
                f"{now.images_per_second:.0f} images/s  {minutes}:{seconds:02d} left",
            )

        yield show


def _accuracies(accuracy: Mapping[str, float]) -> str:
    """``low/high 0.812/0.874``, of each stage."""
    return f"{'/'.join(accuracy)} {'/'.join(f'{share:.3f}' for share in accuracy.values())}"


def _print_epoch(line: EpochLog) -> None:
    output.print(
        f"epoch {line.epoch}  {line.resolution} px  loss {line.loss:.3f}  train {_accuracies(line.accuracy)}  "
        f"held out {_accuracies(line.held_out)}  {line.images_per_second:.0f} images/s, waited {line.waited:.0%}",
        highlight=False,
        soft_wrap=True,
    )
