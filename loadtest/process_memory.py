"""What each further process of a server takes: resident memory, of which shared pages count once.

python loadtest/process_memory.py [--data DIR] [--model NAME] [--most 4]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `loadtest` is not installed

from loadtest import bodies
from loadtest.machine import machine
from loadtest.servers import ServerFailed, free_port, running
from service.settings import SHIPPED_MODEL

CLIENTS = 16
IMAGES = 320
MIB = 2**20


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with val/<class>/; unset: the drawn examples.")] = None,
    model: Annotated[str, typer.Option(help="Model to serve.")] = SHIPPED_MODEL,
    most: Annotated[int, typer.Option(min=2, help="Processes, from 1 on.")] = 4,
    out: Annotated[Path, typer.Option(help="Folder for the servers' logs.")] = Path("runs/memory"),
) -> None:
    """Measure one number of processes after another, each once it has answered, and print them."""
    console = Console()
    console.print(machine())
    photographs = bodies.choose(data, IMAGES)
    before = None
    try:
        for processes in range(1, most + 1):
            taken = _resident(processes, model, photographs, out / f"{processes}.log")
            further = "" if before is None else f", {(taken - before) / MIB:+.0f} MiB"
            console.print(f"{processes} processes: {taken / MIB:.0f} MiB{further}")
            before = taken
    except ServerFailed as error:
        console.print(f"[red]{error}", highlight=False)
        raise typer.Exit(1) from error


def _resident(processes: int, model: str, photographs: list[Path], log: Path) -> int:
    """Bytes of a server that has answered every photograph, over connections to all of its processes."""
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--processes", str(processes)]
    images = [photograph.read_bytes() for photograph in photographs]
    url = f"http://127.0.0.1:{port}/classify"
    settings = {"LOWFIRST_MODEL": model, "LOWFIRST_WORKERS": str(processes)}
    with running(command, settings, url, images[0], bodies.JPEG, log) as server:
        clients = [httpx.Client(timeout=60) for _ in range(CLIENTS)]
        for number, image in enumerate(images):
            client = clients[number % CLIENTS]
            client.post(url, content=image, headers={"Content-Type": bodies.JPEG}).raise_for_status()
        taken = server.pss()
        for client in clients:
            client.close()
        return taken


if __name__ == "__main__":
    typer.run(main)
