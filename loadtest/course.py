"""What every section of the benchmark runs on: models, photographs, how long; and contenders that serve them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from loadtest.bare_loop import BareLoop, measure
from loadtest.bodies import Bodies
from loadtest.contenders.registry import Contender
from loadtest.contenders.work import Job, Work
from loadtest.load import Closed, closed
from loadtest.models import Model, Network
from loadtest.servers import Server, ServerFailed, running

CHECKED = 10
SCORE_TOLERANCE = 0.02
CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Course:
    """What a run of the benchmark was given.

    Attributes:
        models: by network.
        networks: those to measure, where a section has no network of its own.
        peers: those to compare with.
        connections: at saturation.
        raw, multipart: the photographs as bodies.
        data, count: where they came from, for processes that read them again.
        out: folder of results and logs.
        runtime, precision: of the group "same".
        rounds: of which each contender has one turn.
        seconds: a contender is driven in a round.
        quick: everything once and short, to see that it works.
        console: where progress goes.
    """

    models: Mapping[Network, Model]
    networks: tuple[Network, ...]
    peers: tuple[str, ...]
    connections: int
    raw: Bodies
    multipart: Bodies
    data: Path | None
    count: int
    out: Path
    runtime: str
    precision: str
    rounds: int
    seconds: float
    quick: bool
    console: Console

    def bodies(self, contender: Contender) -> Bodies:
        """The bodies it takes."""
        return self.multipart if contender.takes_multipart else self.raw

    @contextmanager
    def serving(self, contender: Contender, network: Network, **settings: object) -> Iterator[Server]:
        """The contender with the network, warm, after it has answered some photographs rightly.

        Args:
            settings: of lowfirst: ``target_latency_ms=500`` becomes LOWFIRST_TARGET_LATENCY_MS.

        Raises:
            ServerFailed: it did not come up, or answered otherwise than the model called directly.
        """
        launch = contender.launch(self.models[network], settings)
        bodies = self.bodies(contender)
        log = self.out / "logs" / f"{network}-{contender.label.replace(' ', '-').replace(',', '').lower()}.log"
        self.console.log(f"{network}: {contender.label}", highlight=False)
        with running(
            launch.command, launch.environment, launch.url, bodies.read()[0], bodies.content_type, log
        ) as server:
            self._check(server, launch.job, bodies)
            closed(server.url, bodies, self.connections, self.seconds / 4)
            yield server

    def drive(self, contender: Contender, server: Server, connections: int | None = None) -> Closed:
        """The section's load on a warm server."""
        return closed(server.url, self.bodies(contender), connections or self.connections, self.seconds)

    def bare_loop(self, contender: Contender, network: Network) -> BareLoop:
        """The contender's work with no server around it, in a process of its own."""
        self.console.log(f"{network}: bare loop of {contender.label}", highlight=False)
        job = contender.launch(self.models[network], {}).job
        return measure(job, self.data, self.count, self.seconds / 4)

    def _check(self, server: Server, job: Job, bodies: Bodies) -> None:
        photographs = self.raw.read()
        posted = bodies.read()
        step = -(-len(photographs) // CHECKED)
        work = _work(job.folder, job.precision, job.runtime)
        for photograph, body in zip(photographs[::step], posted[::step], strict=True):
            expected = work.answer([work.decode(photograph)])[0]
            response = httpx.post(server.url, content=body, headers={"Content-Type": bodies.content_type}, timeout=60)
            given = _answer(response.raise_for_status().json())
            if given["label"] != expected["label"] or abs(given["score"] - expected["score"]) > SCORE_TOLERANCE:
                raise ServerFailed(f"answered {given}; the model called directly says {expected}; see {server.log}")


@cache
def _work(folder: str, precision: str, runtime: str) -> Work:
    return Work(Job(folder, precision, runtime, port=0, workers=1))


def _answer(body: Any) -> Any:
    """The answer to the one image of a request, also of a server that answers with a list."""
    return body[0] if isinstance(body, list) else body
