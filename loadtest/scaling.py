"""Replicas beside one process: images a second of each arrangement, and what the hop through a proxy costs.

    python loadtest/scaling.py [--data DIR] [--network mobilenet] [--replicas 1 --replicas 2]
    python loadtest/scaling.py --measure hop --only direct --only nginx

Throughput: in every round each arrangement is started, loaded and stopped in turn, as a Ray cluster takes a tenth of a
core while it idles. The hop: one connection, one photograph in bodies of several sizes, all up side by side. A change:
until two replicas have the threshold, and the model, that one of them was asked for. Ratios and differences are taken
within rounds. It takes wrk and redis-server, and for the ways that go through them nginx and Ray; `docs/scaling.md`
says how to read the tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `loadtest` is not installed

from loadtest import bodies, models
from loadtest.arrangements import NEEDED, Plan, Site, Way, redis_server
from loadtest.load import ToolFailed, ToolMissing, tool
from loadtest.machine import machine
from loadtest.models import Network
from loadtest.sections.change import Change, change
from loadtest.sections.hop import Hop, hop
from loadtest.sections.throughput import Throughput, throughput
from loadtest.servers import ServerFailed, unwind_on_sigterm
from loadtest.tables import table
from service.errors import LowfirstError


class Measure(StrEnum):
    """What can be measured."""

    throughput = "throughput"
    hop = "hop"
    change = "change"


Result = Throughput | Hop | Change
MEASURES: Mapping[Measure, Callable[[Site, Plan], Iterator[Sequence[Result]]]] = {
    Measure.throughput: throughput,
    Measure.hop: hop,
    Measure.change: change,
}


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with val/<class>/; unset: the drawn examples.")] = None,
    count: Annotated[int, typer.Option(min=10, help="Photographs, spread over the classes.")] = 300,
    network: Annotated[list[Network] | None, typer.Option(help="May be repeated. Unset: both.")] = None,
    measure: Annotated[list[Measure] | None, typer.Option(help="May be repeated. Unset: all.")] = None,
    only: Annotated[list[Way] | None, typer.Option(help="Ways to the replicas; may be repeated. Unset: all.")] = None,
    replicas: Annotated[list[int] | None, typer.Option(min=1, help="May be repeated. Unset: 1 and 2.")] = None,
    connections: Annotated[list[int] | None, typer.Option(min=1, help="May be repeated. Unset: 16.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="For each line of a table in a round.")] = 10.0,
    out: Annotated[Path, typer.Option(help="Folder for results.json and logs.")] = Path("runs/scaling"),
) -> None:
    """Measure, print tables, write JSON."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    unwind_on_sigterm()
    torch.set_num_threads(1)
    ways = tuple(way for way in Way if not only or way in only)
    plan = Plan(ways, tuple(replicas or (1, 2)), tuple(connections or (16,)), rounds, seconds)
    results: list[Result] = []
    console.print(machine())
    try:
        for name in {name for way in (Way.direct, *ways) for name in NEEDED[way]}:
            tool(name)
        for each in [each for each in Network if not network or each in network]:
            with _site(each, bodies.choose(data, count), out / "logs") as site:
                for asked in measure or list(Measure):
                    done = len(results)
                    for found in MEASURES[asked](site, plan):
                        results[done:] = found
                        _write(out / "results.json", plan, results)
                    for result in results[done:]:
                        console.print(table(result.title, result.rows()), "")
    except (ToolMissing, ToolFailed, ServerFailed, LowfirstError) as error:
        console.print(f"[red]{error}", highlight=False)
        raise typer.Exit(1) from error
    console.print(f"{out} has results.json and logs", highlight=False)


@contextmanager
def _site(network: Network, photographs: list[Path], logs: Path) -> Iterator[Site]:
    """The network's model, the photographs as bodies, and a Redis."""
    with TemporaryDirectory(prefix="lowfirst-scaling-") as folder, redis_server() as redis:
        model = models.make(network, Path(folder) / "store", [path.read_bytes() for path in photographs])
        settings = {
            "LOWFIRST_MODEL_STORE": str(model.store),
            "LOWFIRST_MODEL": model.reference,
            "LOWFIRST_REDIS_URL": redis,
            "LOWFIRST_DRAIN_DELAY_SECONDS": "0",
        }
        yield Site(network, settings, bodies.raw(photographs, Path(folder)), logs)


def _write(path: Path, plan: Plan, results: Sequence[Result]) -> None:
    """What is known so far."""
    written = {
        "machine": machine(),
        "conditions": asdict(plan),
        "results": [{"title": result.title, "rows": result.rows(), "measured": asdict(result)} for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written, indent=1, default=asdict) + "\n")


if __name__ == "__main__":
    typer.run(main)
