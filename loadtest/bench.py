"""lowfirst beside other servers, on this machine, with the same weights, decoder and photographs.

    python loadtest/bench.py --data DIR              (or: make bench)
    python loadtest/bench.py --quick                 everything once and short, to see that it works
    python loadtest/bench.py --only saturation --network mobilenet

Each contender is started in turn on loopback, must answer some photographs as the model called directly does, is
warmed and driven. A round gives every contender one turn; ratios are taken within rounds and quoted as the median of
the rounds with least and most, because a machine that others use is slow for all of a round's contenders alike.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Protocol

import torch
import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `loadtest` is not installed

from loadtest import bodies, models
from loadtest.contenders.registry import PEERS
from loadtest.course import CONNECTIONS, Course
from loadtest.load import ToolFailed, ToolMissing, tool
from loadtest.machine import machine
from loadtest.models import Network
from loadtest.ratios import Row
from loadtest.sections.brown_out import brown_out
from loadtest.sections.memory import memory
from loadtest.sections.one_connection import one_connection
from loadtest.sections.open_loop import open_loop
from loadtest.sections.overload import overload
from loadtest.sections.saturation import Saturation, saturation
from loadtest.servers import ServerFailed, unwind_on_sigterm
from loadtest.tables import plot, table
from service.errors import LowfirstError
from service.inference.device import choose_device, choose_precision
from service.inference.runtimes import choose_runtime


class Section(StrEnum):
    """What can be measured."""

    saturation = "saturation"
    defaults = "defaults"
    open_loop = "open_loop"
    one_connection = "one_connection"
    overload = "overload"
    brown_out = "brown_out"
    memory = "memory"


TITLES = {
    Section.saturation: "Saturation, all with one runtime and precision",
    Section.defaults: "Saturation, lowfirst as it starts and peers in PyTorch's defaults",
    Section.open_loop: "Open loop",
    Section.one_connection: "One connection",
    Section.overload: "Three times the capacity, ResNet-18",
    Section.brown_out: "One and a half times the capacity with the floor at 0, ResNet-18",
    Section.memory: "Resident memory, MobileNet",
}


class Result(Protocol):
    """What every section gives: a dataclass with the lines of its table."""

    def rows(self) -> list[Row]:
        """For the table."""
        ...


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with val/<class>/; unset: the drawn examples.")] = None,
    count: Annotated[int, typer.Option(min=10, help="Photographs, spread over the classes.")] = 300,
    out: Annotated[Path, typer.Option(help="Folder for results.json, the plot and logs.")] = Path("runs/bench"),
    only: Annotated[list[Section] | None, typer.Option(help="Sections; may be repeated. Unset: all.")] = None,
    network: Annotated[list[Network] | None, typer.Option(help="May be repeated. Unset: all.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="May be repeated. Unset: all that are installed.")] = None,
    connections: Annotated[int, typer.Option(min=1, help="At saturation.")] = CONNECTIONS,
    runtime: Annotated[str, typer.Option(help="Of all contenders but in section defaults.")] = "auto",
    precision: Annotated[str, typer.Option(help="Likewise; auto: bfloat16 where it is fast.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="For each contender in a round.")] = 10.0,
    quick: Annotated[
        bool, typer.Option(help="One round, short, MobileNet, fewer contenders: to see that it works.")
    ] = False,
) -> None:
    """Measure, print tables, write JSON and a plot."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    unwind_on_sigterm()
    torch.set_num_threads(1)
    networks = tuple(each for each in Network if not network or each in network)
    if quick:
        networks, rounds, seconds = (Network.mobilenet,), 1, min(seconds, 2)
    unknown = sorted(set(peer or ()) - set(PEERS))
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(PEERS)}", param_hint="--peer")
    try:
        for name in ("wrk", "k6"):
            tool(name)
        device = choose_device("cpu")
        with TemporaryDirectory(prefix="lowfirst-bench-") as folder:
            photographs = bodies.choose(data, count)
            encoded = [path.read_bytes() for path in photographs]
            made = [models.make(each, Path(folder) / "store", encoded) for each in Network]
            course = Course(
                models={model.network: model for model in made},
                networks=networks,
                peers=tuple(each for each in PEERS if not peer or each in peer),
                connections=connections,
                raw=bodies.raw(photographs, Path(folder)),
                multipart=bodies.multipart(photographs, Path(folder)),
                data=data,
                count=count,
                out=out,
                runtime=choose_runtime(runtime, device),
                precision=choose_precision(precision, device),
                rounds=rounds,
                seconds=seconds,
                quick=quick,
                console=console,
            )
            _run(course, only or list(Section))
    except (ToolMissing, ToolFailed, ServerFailed, LowfirstError) as error:
        console.print(f"[red]{error}", highlight=False)
        raise typer.Exit(1) from error


def _run(course: Course, sections: Sequence[Section]) -> None:
    """Each section in turn; what is known is written after each."""
    results: dict[Section, Result] = {}

    def same() -> Saturation:
        found = results.get(Section.saturation)
        return found if isinstance(found, Saturation) else saturation(replace(course, rounds=1), "same")

    measures: dict[Section, Callable[[], Result]] = {
        Section.saturation: lambda: saturation(course, "same"),
        Section.defaults: lambda: saturation(course, "defaults"),
        Section.open_loop: lambda: open_loop(course, same()),
        Section.one_connection: lambda: one_connection(course),
        Section.overload: lambda: overload(course),
        Section.brown_out: lambda: brown_out(course),
        Section.memory: lambda: memory(course),
    }
    course.out.mkdir(parents=True, exist_ok=True)
    course.console.print(machine(), _conditions(course))
    for section in sections:
        results[section] = measures[section]()
        course.console.print(table(TITLES[section], results[section].rows()), "")
        _write(course, results)
    course.console.print(f"{course.out} has results.json, plots and logs", highlight=False)


def _write(course: Course, results: Mapping[Section, Result]) -> None:
    sections = {
        section: {"rows": result.rows(), "measured": asdict(result)}  # type: ignore[call-overload]
        for section, result in results.items()
    }
    written = {"machine": machine(), "conditions": _conditions(course), "sections": sections}
    (course.out / "results.json").write_text(json.dumps(written, indent=1, default=_plain) + "\n")
    rates = [result for result in results.values() if isinstance(result, Saturation)]
    if rates:
        plot(rates, course.out / "rates.png")


def _plain(value: object) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _conditions(course: Course) -> dict[str, object]:
    return {
        "runtime": course.runtime,
        "precision": course.precision,
        "photographs": len(course.raw.offsets),
        "rounds": course.rounds,
        "seconds": course.seconds,
        "connections": course.connections,
    }


if __name__ == "__main__":
    typer.run(main)
