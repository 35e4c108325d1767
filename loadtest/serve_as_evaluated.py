"""Does the server give what ``lowfirst evaluate`` prints? Posts every photograph of a labelled set to a running server.

    lowfirst serve &
    python loadtest/serve_as_evaluated.py --data DIR

At thresholds 0, 0.5, the default and 1, moved by ``PATCH /config/threshold``, it compares accuracy, exit rate and
mean multiply-adds three ways: as the answers say, as ``/metrics`` counts them, and as ``lowfirst evaluate`` prints
them for the same precision. The threshold is put back at the end. Exit status 1 when answers and evaluation are
more than two images apart, or answers and counters differ at all.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from service.store import ModelStore, read_spec
from service.training.data import Photographs, find

TOLERATED_IMAGES = 2


@dataclass(frozen=True, slots=True)
class Counts:
    """Right and exited images, and millions of multiply-adds, of one pass over the set."""

    right: int
    exited: int
    mmacs: float


def main(
    data: Annotated[Path, typer.Option(help="Folder with val/<class>/ photographs.")],
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
    store: Annotated[Path, typer.Option(help="The server's model store.")] = Path("model_store"),
    connections: Annotated[int, typer.Option(min=1)] = 16,
    limit: Annotated[int | None, typer.Option(help="Only this many photographs; skips the evaluation.")] = None,
) -> None:
    """Compare a running server with the evaluation of its model."""
    raise typer.Exit(asyncio.run(_compare(data, url, store, connections, limit)))


async def _compare(data: Path, url: str, store: Path, connections: int, limit: int | None) -> int:
    console = Console()
    photographs = find(data, "val")
    if limit is not None:
        step = max(1, len(photographs) // limit)
        photographs = photographs.subset(range(0, len(photographs), step)[:limit])
    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        stats = (await client.get("/stats")).raise_for_status().json()
        name, version = stats["model"]["name"], stats["model"]["version"]
        spec = read_spec(ModelStore(store).find(f"{name}/{version}"))
        if photographs.folders != spec.class_folders:
            console.print(f"the classes of {data} are not those of {name}")
            return 1
        before = (await client.get("/config/threshold")).json()
        default = spec.start_threshold(stats["runtime"], stats["precision"])
        evaluated = None if limit else _evaluate(f"{name}/{version}", data, stats["runtime"], stats["precision"])
        table = Table(
            "threshold", "from", "top-1 %", "exit %", "mean M", "right apart", "exited apart",
            caption="mean M: mean million multiply-adds per image, audits left out; apart: in images, from the answers",
            title=f"{name}/{version}, {stats['precision']}, {len(photographs)} photographs, {connections} connections",
        )  # fmt: skip
        failures = 0
        try:
            for threshold in sorted({0.0, 0.5, default, 1.0}):
                counted = await _counters(client)
                served = await _classify_all(client, photographs, threshold, connections)
                after = await _counters(client)
                metrics = Counts(served.right, after.exited - counted.exited, after.mmacs - counted.mmacs)
                _row(table, threshold, "answers", served, served, len(photographs))
                _row(table, threshold, "/metrics", metrics, served, len(photographs))
                failures += metrics.exited != served.exited or abs(metrics.mmacs - served.mmacs) > 1e-3 * served.mmacs
                if evaluated is not None:
                    point = evaluated[threshold]
                    expected = Counts(
                        right=round(point["accuracy"] * len(photographs)),
                        exited=round(point["exit_rate"] * len(photographs)),
                        mmacs=point["mean_mmacs"] * len(photographs),
                    )
                    _row(table, threshold, "evaluate", expected, served, len(photographs))
                    failures += abs(expected.right - served.right) > TOLERATED_IMAGES
                    failures += abs(expected.exited - served.exited) > TOLERATED_IMAGES
        finally:
            await _patch(client, before["threshold"])
    console.print(table)
    return 1 if failures else 0


async def _classify_all(
    client: httpx.AsyncClient, photographs: Photographs, threshold: float, connections: int
) -> Counts:
    """One pass over the set at ``threshold``, with as many requests at a time as there are connections."""
    await _patch(client, threshold)
    todo = iter(zip(photographs.paths, photographs.targets, strict=True))
    answers: list[tuple[bool, bool, float]] = []

    async def post() -> None:
        for path, target in todo:
            response = await client.post(
                "/classify?top_k=1", content=path.read_bytes(), headers={"Content-Type": "image/jpeg"}
            )
            answer = response.raise_for_status().json()
            assert answer["threshold"] == threshold
            answers.append((answer["top_k"][0]["index"] == target, answer["exit"] == "low", answer["mmacs"]))

    await asyncio.gather(*(post() for _ in range(connections)))
    return Counts(
        right=sum(right for right, _, _ in answers),
        exited=sum(exited for _, exited, _ in answers),
        mmacs=sum(mmacs for _, _, mmacs in answers),
    )


async def _patch(client: httpx.AsyncClient, threshold: float) -> None:
    (await client.patch("/config/threshold", json={"threshold": threshold})).raise_for_status()


async def _counters(client: httpx.AsyncClient) -> Counts:
    text = (await client.get("/metrics")).raise_for_status().text
    exited, multiply_adds = 0.0, 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "lowfirst_images_total" and sample.labels["exit"] == "low":
                exited += sample.value
            elif sample.name == "lowfirst_multiply_adds_total" and sample.labels["stage"] != "audit":  # no answer's
                multiply_adds += sample.value
    return Counts(right=0, exited=int(exited), mmacs=multiply_adds / 1e6)


def _evaluate(model: str, data: Path, runtime: str, precision: str) -> dict[float, dict[str, Any]]:
    command = [sys.executable, "-m", "service.cli", "evaluate", model]
    command += ["--data", str(data), "--runtime", runtime, "--precision", precision, "--json"]
    printed = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    points = [*printed["curve"], printed["default"]]
    return {point["threshold"]: point for point in points}


def _row(table: Table, threshold: float, source: str, counts: Counts, served: Counts, images: int) -> None:
    table.add_row(
        f"{threshold:g}",
        source,
        f"{100 * counts.right / images:.2f}",
        f"{100 * counts.exited / images:.2f}",
        f"{counts.mmacs / images:.2f}",
        str(counts.right - served.right),
        str(counts.exited - served.exited),
    )


if __name__ == "__main__":
    typer.run(main)
