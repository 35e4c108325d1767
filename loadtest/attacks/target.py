"""The server under attack: ``lowfirst serve`` with the shipped model, and what is asked of it besides."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

from loadtest.attacks.clients import Request, classify
from loadtest.bodies import JPEG
from loadtest.servers import Server, free_port, running
from service.inference.latency import LatencyProfile, measure
from service.inference.predictor import Predictor
from service.settings import SHIPPED_STORE
from service.store import ModelStore

MB = 1e6
SERVE = (sys.executable, "-m", "service.cli", "serve")


@dataclass(frozen=True, slots=True)
class Target:
    """A running server."""

    server: Server

    @property
    def port(self) -> int:
        port = httpx.URL(self.server.url).port
        assert port is not None
        return port

    @property
    def process(self) -> psutil.Process:
        """The one that was started."""
        return psutil.Process(self.server.pid)

    def get(self, path: str) -> Any:
        """JSON of an address, over a connection of its own."""
        return httpx.get(self.server.origin + path, timeout=60).json()

    def patch(self, path: str, body: Mapping[str, object]) -> httpx.Response:
        return httpx.patch(self.server.origin + path, json=body, timeout=300)

    def status(self, path: str) -> int:
        """Of an address; 0 without an answer."""
        try:
            return httpx.get(self.server.origin + path, timeout=60).status_code
        except httpx.TransportError:
            return 0

    def metrics(self) -> dict[str, float]:
        """Every sample, by its name with labels as it stands there."""
        text = httpx.get(self.server.origin + "/metrics", timeout=60).text
        return {name: float(value) for name, value in re.findall(r"^(lowfirst_\S+) (\S+)$", text, re.MULTILINE)}

    def classified(self) -> dict[str, int]:
        """Requests of ``/classify`` so far, by status."""
        pattern = re.compile(r'lowfirst_requests_total\{code="(\d+)",route="/classify"\}')
        return {found[1]: int(value) for name, value in self.metrics().items() if (found := pattern.match(name))}

    def is_idle(self) -> bool:
        """Whether nothing is in flight: no image, no byte, no feature."""
        queue = self.get("/stats")["queue"]
        features = self.metrics()["lowfirst_feature_bytes"]
        return not queue["images_in_flight"] and not queue["bytes_in_flight"] and not features

    def is_ready(self) -> bool:
        """Whether all of its processes are."""
        try:
            answer = httpx.get(self.server.origin + "/health/ready", timeout=60)
        except httpx.TransportError:
            return False
        processes = answer.json().get("processes", {"ready": 1, "count": 1}) if answer.status_code == 200 else {}
        return bool(processes) and processes["ready"] == processes["count"]

    def children(self) -> list[psutil.Process]:
        """The processes that serve: forked by the template, or the one itself."""
        forked = [child for template in self.process.children() for child in template.children()]
        serving = [child for child in forked if _is_serving(child)]
        return serving or [self.process]

    def memory(self) -> dict[int, int]:
        """Resident bytes of each process, by its id."""
        return self._of_each(lambda process: int(process.memory_info().rss))

    def held(self) -> dict[str, int]:
        """Descriptors, threads and resident bytes of all of them together."""
        found = {"descriptors": 0, "threads": 0, "bytes": 0}
        for each in self.family():
            with suppress(psutil.Error):
                found["descriptors"] += each.num_fds()
                found["threads"] += each.num_threads()
                found["bytes"] += each.memory_info().rss
        return found

    def family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Processor time of all its living processes so far."""
        return sum(self.server.cpu_seconds().values())

    def _of_each(self, read: Any) -> dict[int, int]:
        found = {}
        for each in self.family():
            with suppress(psutil.Error):
                found[each.pid] = read(each)
        return found


def _is_serving(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "service.images.helper" not in " ".join(process.cmdline())
    return False


@dataclass(frozen=True)
class Bench:
    """What a run was given.

    Attributes:
        photographs: encoded.
        model: the shipped one that is served.
        seconds: of each phase under load.
        soak_seconds: of the soak.
        files: damaged ones; other numbers of attacks are shares of it.
        is_quick: whether the short version of each row is run, and times fail at generous bounds only.
        seed: of all that is drawn.
        folder: where logs, stores and plots go.
        stack: ends the servers that rows share.
        numbers: of logs.
        started: the servers that rows share, by their settings.
        stores: those made in this run, by name.
    """

    photographs: Sequence[bytes]
    model: str
    seconds: float
    soak_seconds: float
    files: int
    is_quick: bool
    seed: int
    folder: Path
    stack: ExitStack
    numbers: Iterator[int] = field(default_factory=partial(count, 1))
    started: dict[str, Target] = field(default_factory=dict)
    stores: dict[str, Path] = field(default_factory=dict)

    @property
    def requests(self) -> list[Request]:
        """One for each photograph."""
        return [classify(photograph) for photograph in self.photographs]

    @cached_property
    def profile(self) -> Path:
        """Times of the model, measured once, for every server: of whatever model, which is near enough for a start."""
        torch.set_num_threads(1)
        predictor = Predictor.load(ModelStore(SHIPPED_STORE).find(self.model), "cpu", runtime="auto")
        path = self.folder / "profile.json"
        LatencyProfile(measure(predictor, 1.0, (1, 2, 4, 8))).write(path)
        return path

    @property
    def patience(self) -> float:
        """By how much a time may be beyond its bound: a machine that does much else is no fault of the server's."""
        return 8.0 if self.is_quick else 1.0

    @contextmanager
    def serve(self, *, command: Sequence[str] = SERVE, **settings: object) -> Iterator[Target]:
        """A server of its own, with two processes unless ``settings`` say otherwise."""
        port = free_port()
        chosen: dict[str, object] = {
            **({"profile": self.profile, "max_batch_size": 8} if self.is_quick else {}),
            "model": self.model,
            "port": port,
            "processes": 2,
            "workers": max(2, len(os.sched_getaffinity(0))),
            "drain_delay_seconds": 0.5,
            **settings,
        }
        environment = {f"LOWFIRST_{name.upper()}": str(value) for name, value in chosen.items() if value is not None}
        log = self.folder / f"server-{next(self.numbers)}.log"
        with running(command, environment, self._url(port), self.photographs[0], JPEG, log) as server:
            target = Target(server)
            end = time.monotonic() + 60
            while not target.is_ready() and time.monotonic() < end:
                time.sleep(0.05)
            yield target

    @contextmanager
    def shared(self, *, command: Sequence[str] = SERVE, **settings: object) -> Iterator[Target]:
        """A server for rows that leave it as it was; it ends with the run."""
        key = repr((command, settings))
        if key not in self.started:
            self.started[key] = self.stack.enter_context(self.serve(command=command, **settings))
        yield self.started[key]

    def store(self, name: str, **models: str) -> Path:
        """A store of copies of shipped models: the name in it by the name of the shipped one."""
        root = self.stores[name] = self.folder / name
        shutil.rmtree(root, ignore_errors=True)
        for copy, shipped in models.items():
            source = max((SHIPPED_STORE / shipped).iterdir(), key=lambda version: int(version.name))
            folder = shutil.copytree(source, root / copy / "1")
            spec = json.loads((folder / "model.json").read_text())
            (folder / "model.json").write_text(json.dumps({**spec, "name": copy, "version": 1}))
        return root

    @staticmethod
    def _url(port: int) -> str:
        return f"http://127.0.0.1:{port}/classify"
