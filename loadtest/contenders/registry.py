"""Every contender: how it is started, and what it is asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from loadtest.contenders.work import Job, Kind
from loadtest.models import Model
from loadtest.servers import free_port

APPS = "loadtest.contenders."
LOWFIRST = "lowfirst"
RAY_HIGH_THROUGHPUT = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server.

    Attributes:
        package: that it is imported as.
        command: what starts it for a job.
        environment: its settings that are environment variables.
        takes_multipart: it is asked with a multipart part, not the raw body.
    """

    package: str
    command: Callable[[Job], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    takes_multipart: bool = False


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


def _fastapi(job: Job) -> list[str]:
    return _module(
        "uvicorn", APPS + "fastapi_app:app", "--port", str(job.port), "--workers", str(job.workers),
        "--no-access-log", "--log-level", "warning",
    )  # fmt: skip


def _mosec(job: Job) -> list[str]:
    return _module(APPS + "mosec_app", "--address", "127.0.0.1", "--port", str(job.port), "--timeout", "60000")


def _bentoml(job: Job) -> list[str]:
    return _module("bentoml", "serve", APPS + "bentoml_app:Classifier", "--host", "127.0.0.1", "--port", str(job.port))


PEERS = {
    "FastAPI": Peer("fastapi", _fastapi),
    "LitServe": Peer("litserve", lambda job: _module(APPS + "litserve_app")),
    "Mosec": Peer("mosec", _mosec),
    "BentoML": Peer("bentoml", _bentoml, takes_multipart=True),
    "Ray Serve": Peer("ray", lambda job: _module(APPS + "ray_app"), RAY_HIGH_THROUGHPUT),
}


@dataclass(frozen=True, slots=True)
class Launch:
    """A process to be: its command, its environment, where it will answer, and the job it does."""

    command: list[str]
    environment: dict[str, str]
    url: str
    job: Job


@dataclass(frozen=True, slots=True)
class Contender:
    """A server with what it serves.

    Attributes:
        name: ``lowfirst``, or one of ``PEERS``.
        kind: lowfirst has the cascade.
        precision, runtime: of ``Predictor``; ``auto`` leaves lowfirst at its defaults.
        processes: of lowfirst.
    """

    name: str
    kind: Kind
    precision: str
    runtime: str
    processes: str = "auto"

    @property
    def label(self) -> str:
        """For tables."""
        if self.name != LOWFIRST:
            return f"{self.name}, {self.kind}"
        parts = [LOWFIRST, *([self.runtime] if self.runtime != "auto" else [])]
        return ", ".join(parts + (["one process"] if self.processes == "1" else []))

    @property
    def takes_multipart(self) -> bool:
        """It is asked with a multipart part, not the raw body."""
        return self.name != LOWFIRST and PEERS[self.name].takes_multipart

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return self.name == LOWFIRST or find_spec(PEERS[self.name].package) is not None

    def launch(self, model: Model, settings: Mapping[str, object]) -> Launch:
        """What starts it with ``model`` on a free port; ``settings`` are of lowfirst."""
        folder = model.cascade if self.kind == "cascade" else model.single
        job = Job(str(folder), self.precision, self.runtime, free_port(), workers=len(os.sched_getaffinity(0)))
        url = f"http://127.0.0.1:{job.port}/classify"
        if self.name != LOWFIRST:
            peer = PEERS[self.name]
            return Launch(peer.command(job), {**job.environment(), **peer.environment}, url, job)
        chosen = {
            "model_store": model.store,
            "model": model.reference,
            "port": job.port,
            "precision": self.precision,
            "runtime": self.runtime,
            "processes": self.processes,
            "drain_delay_seconds": 0,
            **settings,
        }
        environment = {f"LOWFIRST_{name.upper()}": str(value) for name, value in chosen.items()}
        return Launch(_module("service.cli", "serve"), environment, url, job)
