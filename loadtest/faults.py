"""Attacks, faults and load on a real server, as one table (or: make faults FAULTS="--data DIR").

    python loadtest/faults.py --data DIR                all rows; hours, on a machine that does nothing else
    python loadtest/faults.py --quick                   a short version of each, as CI runs it
    python loadtest/faults.py --only images --count 1000

Counts and statuses are judged strictly; times strictly too, but with ``--quick``, where the machine may be busy.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `loadtest` and `tests` are not installed

from loadtest import bodies
from loadtest.attacks import (
    clients_that_leave,
    clock,
    files,
    images,
    memory,
    over_http,
    overload,
    redis_faults,
    signals,
    soak,
    switches,
)
from loadtest.attacks.outcome import Outcome, markdown, told
from loadtest.attacks.target import Bench
from loadtest.machine import machine
from loadtest.servers import unwind_on_sigterm
from service.settings import SHIPPED_MODEL

Attack = Callable[[Bench], AsyncIterator[Outcome]]

ROWS: dict[str, Attack] = {
    "images": images.images,
    "bombs": images.bombs,
    "schemathesis": over_http.schemathesis,
    "slow": over_http.slow,
    "leaving": clients_that_leave.leaving,
    "framing": over_http.framing,
    "redis": redis_faults.redis,
    "raising": files.raising,
    "weights": files.weights,
    "files": files.files,
    "disk": files.disk,
    "memory": memory.memory,
    "clock": clock.clock,
    "descriptors": files.descriptors,
    "signals": signals.signals,
    "child": signals.child,
    "switches": switches.switches,
    "overload": overload.overload,
    "rates": overload.rates,
    "soak": soak.soak,
}

QUICK_MODEL = "imagenette-mobilenet"
NOT_QUICK = ("schemathesis",)  # a test of the suite does the same


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with val/<class>/; unset: the drawn examples.")] = None,
    model: Annotated[str | None, typer.Option(help="Of the shipped ones.")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(ROWS)}; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option(help="A short version of every row.")] = False,
    seconds: Annotated[float | None, typer.Option(min=1, help="Of each phase under load. [default: 600]")] = None,
    soak_seconds: Annotated[float | None, typer.Option(min=5, help="Of the soak. [default: 7200]")] = None,
    count: Annotated[int | None, typer.Option(min=60, help="Damaged files. [default: 100000]")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for table, JSON, logs, and files that broke it.")] = Path(
        "runs/faults"
    ),
) -> None:
    """Run the rows, print the table, and end with status 1 where one fails."""
    unwind_on_sigterm()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # else servers inherit from nohup or a shell that they are ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if unknown := set(only or ()) - set(ROWS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: rows are {', '.join(ROWS)}")
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    console = Console(soft_wrap=True)
    with ExitStack() as stack:
        bench = Bench(
            photographs=[path.read_bytes() for path in bodies.choose(data, 200)],
            model=model or (QUICK_MODEL if quick else SHIPPED_MODEL),
            seconds=seconds or (3 if quick else 600),
            soak_seconds=soak_seconds or (12 if quick else 7200),
            files=count or (1500 if quick else 100_000),
            is_quick=quick,
            seed=seed,
            folder=out.resolve(),
            stack=stack,
        )
        for row in only or [row for row in ROWS if not (quick and row in NOT_QUICK)]:
            uvloop.run(_row(row, bench, outcomes, console))
            _write(out, outcomes)
    console.print(markdown(outcomes), markup=False, highlight=False)
    raise typer.Exit(0 if all(each.passed for each in outcomes) else 1)


def _write(out: Path, outcomes: Sequence[Outcome]) -> None:
    """What there is so far: a run may be interrupted."""
    (out / "faults.md").write_text(markdown(outcomes))
    found = {"machine": machine(), "command": sys.argv[1:], "rows": [each.as_dict() for each in outcomes]}
    (out / "faults.json").write_text(json.dumps(found, indent=1))


async def _row(row: str, bench: Bench, outcomes: list[Outcome], console: Console) -> None:
    """Its outcomes; an attack that breaks itself is one that failed."""
    began = time.monotonic()
    try:
        async for outcome in ROWS[row](bench):
            outcome.seconds = time.monotonic() - began
            began = time.monotonic()
            outcomes.append(outcome)
            verdict = "pass" if outcome.passed else f"FAIL {'; '.join(outcome.broken)}"
            line = f"{outcome.row} ({outcome.seconds:.0f} s): {outcome.did}; {told(outcome.fates)}: {verdict}"
            console.print(line, markup=False, highlight=False)
    except Exception as error:
        (bench.folder / f"{row}.traceback").write_text(traceback.format_exc())
        outcomes.append(Outcome(row, "the attack runs to its end", broken=[f"{type(error).__name__}: {error}"]))
        console.print(f"{row}: FAIL {outcomes[-1].broken[0]}", markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
