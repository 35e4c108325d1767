"""Everything that waits for a GPU, in one table, in at most ten minutes (or: make gpu).

    python loadtest/gpu.py --data DIR
    python loadtest/gpu.py --device cpu --seconds 0.5 --limit 50 --processes 1 --processes 2      to try the script

The contract tests of the CUDA runtime; each stage in eager PyTorch, as CUDA graphs and by ``torch.compile``; the same
stages behind the engine and HTTP, in one and more processes; and whether the device answers as the CPU does. What fails
is a line of the table, and the rest goes on.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `loadtest` is not installed

from loadtest import bodies
from loadtest.contenders.registry import LOWFIRST, Contender
from loadtest.load import closed
from loadtest.models import Model, Network
from loadtest.servers import ROOT, running
from service.images.decode import decode
from service.inference.device import choose_device
from service.inference.latency import measure
from service.inference.predictor import Predictor
from service.inference.runtimes.eager import EagerRuntime
from service.settings import SHIPPED_MODEL, SHIPPED_STORE
from service.store import ModelStore

BATCH_SIZES = (1, 8, 64)
CONNECTIONS = 64
TEST_SECONDS = 240
CHECKED = 32  # photographs decoded at a time


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table."""

    what: str
    value: str


@dataclass(frozen=True, slots=True)
class Bench:
    """What a run was given.

    Attributes:
        folder: of the model.
        device: ``cuda``, or ``cpu`` to try the script.
        data: photographs; None takes the drawn examples.
        seconds: of each measurement.
        limit: photographs of which the answers are compared.
        processes: numbers of them behind HTTP.
    """

    folder: Path
    device: str
    data: Path | None
    seconds: float
    limit: int
    processes: tuple[int, ...]

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Those that the device has, beside ``torch.compile``."""
        return ("eager", "cuda") if self.device.startswith("cuda") else ("eager",)

    def load(self, runtime: str) -> Predictor:
        """The model on the device, in its fastest precision."""
        return Predictor.load(self.folder, self.device, runtime=runtime)


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with val/<class>/; unset: the drawn examples.")] = None,
    model: Annotated[str, typer.Option(help="Of the shipped ones.")] = SHIPPED_MODEL,
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the script.")] = "cuda",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 5.0,
    limit: Annotated[int, typer.Option(min=1, help="Photographs whose answers are compared.")] = 1000,
    processes: Annotated[list[int] | None, typer.Option(min=1, help="Behind HTTP; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Where the table goes as text, too.")] = Path("runs/gpu.txt"),
) -> None:
    """Run all of it, and print the table."""
    choose_device(device)
    bench = Bench(ModelStore(SHIPPED_STORE).find(model), device, data, seconds, limit, tuple(processes or (1, 2, 4, 8)))
    table = Table("what", "result", title=f"{model} on {_name(device)}")
    for section in (tests, stages, answers, served):
        try:
            for line in section(bench):
                table.add_row(line.what, line.value)
        except Exception as error:
            table.add_row(section.__name__, f"failed: {type(error).__name__}: {error}")
    Console().print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w") as file:
        Console(file=file, width=140).print(table)


def tests(bench: Bench) -> Iterator[Line]:
    """The contract tests of the runtimes, of which those of CUDA are skipped elsewhere."""
    chosen = "gpu or cuda" if bench.device.startswith("cuda") else "eager"
    command = [sys.executable, "-m", "pytest", "-q", "tests/contract/test_runtimes.py", "-k", chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TEST_SECONDS, check=False)
    yield Line("contract tests", (done.stdout.strip().splitlines() or ["no output"])[-1])


def stages(bench: Bench) -> Iterator[Line]:
    """Milliseconds per image of each stage, by runtime and batch size."""
    for name, predictor in _variants(bench):
        table = measure(predictor, bench.seconds, BATCH_SIZES)
        for size in table.stages[0]:
            times = zip(predictor.spec.stages, table.stages, strict=True)
            each = ", ".join(f"{stage.name} {1e3 * seconds[size] / size:.3f}" for stage, seconds in times)
            yield Line(f"{name}, batch of {size}, ms per image", each)


def answers(bench: Bench) -> Iterator[Line]:
    """How often the device answers as eager float32 on the CPU does, stage by stage."""
    photographs = bodies.choose(bench.data, bench.limit)
    reference = Predictor.load(bench.folder, "cpu", "float32")
    crops = [decode(path.read_bytes(), reference.spec.preprocessing) for path in photographs]
    expected = _labels(reference, crops)
    for runtime in bench.runtimes:
        given = _labels(bench.load(runtime), crops)
        same = [f"{100 * (a == b).float().mean():.2f} %" for a, b in zip(given, expected, strict=True)]
        yield Line(f"{runtime}: same label as the CPU's, {len(crops)} photographs, by stage", ", ".join(same))


def served(bench: Bench) -> Iterator[Line]:
    """Images per second over HTTP by runtime and processes."""
    with TemporaryDirectory(prefix="lowfirst-gpu-") as folder:
        photographs = bodies.raw(bodies.choose(bench.data, 200), Path(folder))
        for runtime in bench.runtimes:
            for count in bench.processes:
                seen = _served(bench, runtime, count, photographs, Path(folder))
                yield Line(f"HTTP, {runtime}, {count} processes, {CONNECTIONS} connections", seen)


def _variants(bench: Bench) -> Iterator[tuple[str, Predictor]]:
    for runtime in bench.runtimes:
        yield runtime, bench.load(runtime)
    compiled = bench.load("eager")
    runtime_ = compiled._runtime
    assert isinstance(runtime_, EagerRuntime)
    runtime_._network.run = torch.compile(runtime_._network.run, dynamic=False)  # type: ignore[method-assign]
    yield "torch.compile", compiled


def _labels(predictor: Predictor, crops: list[Tensor]) -> list[Tensor]:
    parts = [predictor.answers_to(torch.stack(crops[at : at + CHECKED])) for at in range(0, len(crops), CHECKED)]
    return [torch.cat(stage).argmax(1) for stage in zip(*parts, strict=True)]


def _served(bench: Bench, runtime: str, count: int, photographs: bodies.Bodies, folder: Path) -> str:
    model = Model(Network.shipped_resnet18, cascade=bench.folder, single=bench.folder)
    launch = Contender(LOWFIRST, "cascade", "auto", runtime, str(count)).launch(model, {"device": bench.device})
    log, body = folder / "serve.log", photographs.read()[0]
    with running(launch.command, launch.environment, launch.url, body, photographs.content_type, log) as server:
        closed(server.url, photographs, CONNECTIONS, 1)
        seen = closed(server.url, photographs, CONNECTIONS, bench.seconds)
    return f"{seen.rate:.0f} images per second, p99 {seen.p99_ms:.1f} ms"


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    typer.run(main)
