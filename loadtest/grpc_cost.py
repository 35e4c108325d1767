"""What an image costs the server over gRPC, beside HTTP: processor time of the server per image, network included.

python loadtest/grpc_cost.py [--data DIR] [--model NAME] [--images 2000] [--clients 8]

The same photographs, from as many clients with a connection each, by turns: `POST /classify`, `/v2/…/infer` over HTTP
with a binary tensor, and ModelInfer over gRPC. What the clients take is not counted. One process serves, so that all
three are answered by the same event loop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

import grpc
import httpx
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `loadtest` is not installed

from loadtest import bodies
from loadtest.machine import machine
from loadtest.servers import Server, ServerFailed, free_port, running
from service.api.rpc.messages import METHODS, SERVICE
from service.api.tensors import JSON_LENGTH, LENGTH
from service.settings import SHIPPED_MODEL

ROUNDS = 5

Send = Callable[[bytes], None]


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with val/<class>/; unset: the drawn examples.")] = None,
    model: Annotated[str, typer.Option(help="Model to serve.")] = SHIPPED_MODEL,
    images: Annotated[int, typer.Option(min=1, help="Images of each way in each round.")] = 2000,
    clients: Annotated[int, typer.Option(min=1, help="That ask at a time.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for the server's log.")] = Path("runs/grpc"),
) -> None:
    """Measure each way by turns, and print the medians."""
    console = Console()
    console.print(machine())
    photographs = [each.read_bytes() for each in bodies.choose(data, images)]
    port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--processes", "1"]
    settings = {"LOWFIRST_MODEL": model, "LOWFIRST_GRPC_PORT": str(grpc_port), "LOWFIRST_AUDIT_PROBABILITY": "0"}
    url = f"http://127.0.0.1:{port}"
    ways: dict[str, Callable[[], Iterator[Send]]] = {
        "POST /classify": lambda: _posting(f"{url}/classify", {"Content-Type": bodies.JPEG}),
        "/v2 over HTTP": lambda: _posting(f"{url}/v2/models/{model}/infer", {JSON_LENGTH: "0"}),
        "/v2 over gRPC": lambda: _calling(f"127.0.0.1:{grpc_port}", model),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    try:
        with running(command, settings, f"{url}/classify", photographs[0], bodies.JPEG, out / "server.log") as server:
            for turn in range(ROUNDS + 1):
                for name, opening in ways.items():
                    seconds = _spent(server, contextmanager(opening), photographs, images, clients)
                    if turn:  # the first warms up
                        spent[name].append(seconds)
    except ServerFailed as error:
        console.print(f"[red]{error}", highlight=False)
        raise typer.Exit(1) from error
    table = Table(
        "way", "ms of the server's processors per image", "lowest", "highest", title=f"{model}, {images} images"
    )
    for name, rounds in spent.items():
        table.add_row(name, *(f"{1e3 * each:.3f}" for each in (median(rounds), min(rounds), max(rounds))))
    console.print(table)


def _spent(
    server: Server,
    opening: Callable[[], AbstractContextManager[Send]],
    photographs: Sequence[bytes],
    images: int,
    clients: int,
) -> float:
    """Seconds of processors per image, while so many clients send one photograph after another."""
    with ExitStack() as stack, ThreadPoolExecutor(clients) as threads:
        sends = [stack.enter_context(opening()) for _ in range(clients)]

        def send(client: int) -> None:
            for number in range(client, images, clients):
                sends[client](photographs[number % len(photographs)])

        before = sum(server.cpu_seconds().values())
        list(threads.map(send, range(clients)))
        return (sum(server.cpu_seconds().values()) - before) / images


def _posting(url: str, headers: dict[str, str]) -> Iterator[Send]:
    with httpx.Client(timeout=60, headers=headers) as client:

        def send(image: bytes) -> None:
            client.post(url, content=image).raise_for_status()

        yield send


def _calling(address: str, model: str) -> Iterator[Send]:
    asked, answered = METHODS["ModelInfer"]
    own = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
    with grpc.insecure_channel(address, options=own) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=asked.SerializeToString,
            response_deserializer=answered.FromString,
        )

        def send(image: bytes) -> None:
            request = asked(model_name=model, raw_input_contents=[LENGTH.pack(len(image)) + image])
            request.inputs.add(name="image", datatype="BYTES", shape=[1])
            infer(request, timeout=60)

        yield send


if __name__ == "__main__":
    typer.run(main)
