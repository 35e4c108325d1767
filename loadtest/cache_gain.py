"""What the result cache brings where images come again: the same load with it and without, in interleaved rounds.

    python loadtest/cache_gain.py [--data DIR] [--model NAME] [--redis redis://localhost] [--repeats 0.3]

Every image is new but for the share of repeats. The servers run side by side and are loaded one at a time; a ratio is
taken in each round. It takes wrk.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `loadtest` is not installed

from loadtest import bodies
from loadtest.load import Closed, ToolFailed, ToolMissing, closed, tool
from loadtest.machine import machine
from loadtest.ratios import Row, Spread, ratio
from loadtest.servers import Server, ServerFailed, free_port, running
from loadtest.tables import table
from service.errors import LowfirstError
from service.settings import SHIPPED_MODEL

CONNECTIONS = 16
OFF = "off"


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with val/<class>/; unset: the drawn examples.")] = None,
    count: Annotated[int, typer.Option(min=10, help="Photographs, spread over the classes.")] = 300,
    model: Annotated[str, typer.Option(help="Model to serve.")] = SHIPPED_MODEL,
    redis: Annotated[str | None, typer.Option(help="URL of a Redis to keep results in too, for ten minutes.")] = None,
    repeats: Annotated[float, typer.Option(min=0, max=1, help="Share of the images that were sent before.")] = 0.3,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="For each server in a round.")] = 10.0,
    out: Annotated[Path, typer.Option(help="Folder for the servers' logs.")] = Path("runs/cache"),
) -> None:
    """Measure, and print a table."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    caches: dict[str, dict[str, str]] = {OFF: {}, "memory": {"LOWFIRST_CACHE_ENTRIES": "1000000"}}
    if redis is not None:
        caches["Redis"] = {"LOWFIRST_REDIS_URL": redis, "LOWFIRST_CACHE_TTL_SECONDS": "600"}
    try:
        tool("wrk")
        with TemporaryDirectory(prefix="lowfirst-cache-") as folder, ExitStack() as stack:
            sent = bodies.raw(bodies.choose(data, count), Path(folder))
            body = sent.read()[0]
            servers = {
                cache: stack.enter_context(_serving({**settings, "LOWFIRST_MODEL": model}, body, out / f"{cache}.log"))
                for cache, settings in caches.items()
            }
            seen: dict[str, list[Closed]] = {cache: [] for cache in servers}
            for round_ in range(rounds):
                for cache, server in servers.items():
                    load = closed(server.url, sent, CONNECTIONS, seconds, seed=round_, repeats=repeats)
                    seen[cache].append(load)
            hits = {cache: _hit_rate(server) for cache, server in servers.items()}
    except (ToolMissing, ToolFailed, ServerFailed, LowfirstError) as error:
        console.print(f"[red]{error}", highlight=False)
        raise typer.Exit(1) from error
    console.print(machine())
    console.print(table(f"{model}, {100 * repeats:g} % repeats", _rows(seen, hits)))


def _serving(settings: Mapping[str, str], body: bytes, log: Path) -> AbstractContextManager[Server]:
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port)]
    return running(command, settings, f"http://127.0.0.1:{port}/classify", body, bodies.JPEG, log)


def _hit_rate(server: Server) -> float | None:
    """Share of the look-ups that were answered from the cache; None where there were none."""
    metrics = httpx.get(f"{server.origin}/metrics").text
    found = {
        sample.labels["result"]: sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "lowfirst_cache_requests_total"
    }
    asked = sum(found.values())
    return found["hit"] / asked if asked else None


def _rows(seen: Mapping[str, list[Closed]], hits: Mapping[str, float | None]) -> list[Row]:
    off = [each.rate for each in seen[OFF]]
    return [
        {
            "cache": cache,
            "images/s": Spread.of([each.rate for each in rounds]),
            "times those without": ratio([each.rate for each in rounds], off),
            "hit rate": hits[cache],
            "p50, ms": Spread.of([each.p50_ms for each in rounds]),
            "p99, ms": Spread.of([each.p99_ms for each in rounds]),
            "failures": float(sum(each.failures for each in rounds)),
        }
        for cache, rounds in seen.items()
    ]


if __name__ == "__main__":
    typer.run(main)
