"""How soon every replica has a change that one of them was asked for: of the threshold, and of the model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from loadtest.arrangements import Arrangement, Plan, Site, Way, standing
from loadtest.ratios import Row, Spread
from loadtest.servers import START_SECONDS, ServerFailed
from service.store import read_spec, write_spec

REPLICAS = 2
VERSIONS = (1, 2)


@dataclass(frozen=True, slots=True)
class Lane:
    """Changes of one kind, one a round.

    Attributes:
        asked: milliseconds until the replica that was asked has answered.
        reached: milliseconds from that answer until the last replica has the change too.
    """

    changed: str
    asked: list[float] = field(default_factory=list)
    reached: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Change:
    """What was seen of both kinds."""

    network: str
    lanes: list[Lane]

    @property
    def title(self) -> str:
        """Of the table."""
        return f"A change, {self.network}, {REPLICAS} replicas"

    def rows(self) -> list[Row]:
        """For the table."""
        return [
            {
                "changed": lane.changed,
                "answered after, ms": Spread.of(lane.asked),
                "in every replica, ms later": Spread.of(lane.reached),
            }
            for lane in self.lanes
        ]


def change(site: Site, plan: Plan) -> Iterator[list[Change]]:
    """After each round, what is known so far. Replicas are asked in turn; the model is the same in two versions."""
    threshold, model = Lane("threshold"), Lane("model")
    with TemporaryDirectory(prefix="lowfirst-change-") as folder:
        name = _twice(Path(site.settings["LOWFIRST_MODEL_STORE"]), site.settings["LOWFIRST_MODEL"], Path(folder))
        own = {**site.settings, "LOWFIRST_MODEL_STORE": folder, "LOWFIRST_MODEL": f"{name}/{VERSIONS[0]}"}
        with standing(Arrangement(Way.direct, REPLICAS, 1), replace(site, settings=own)) as up:
            origins = [server.origin for server in up.servers]
            for round_ in range(plan.rounds):
                asked = origins[round_ % len(origins)]
                _time(threshold, asked, origins, 0.1 + 0.8 * (round_ % 2))
                _time(model, asked, origins, f"{name}/{VERSIONS[(round_ + 1) % 2]}")
                yield [Change(site.network, [threshold, model])]


def _twice(store: Path, reference: str, into: Path) -> str:
    """The model's name, in the store ``into`` in two versions."""
    name, _, _ = reference.partition("/")
    for version in VERSIONS:
        folder = into / name / str(version)
        shutil.copytree(store / reference, folder)
        write_spec(folder, replace(read_spec(folder), version=version))
    return name


def _time(lane: Lane, asked: str, origins: Sequence[str], value: float | str) -> None:
    began = time.perf_counter()
    body = {lane.changed: value}
    httpx.patch(f"{asked}/config/{lane.changed}", json=body, timeout=START_SECONDS).raise_for_status()
    answered = time.perf_counter()
    while not all(_in_force(origin)[lane.changed] == value for origin in origins):
        if time.perf_counter() - answered > START_SECONDS:
            raise ServerFailed(f"{body} had not reached every replica after {START_SECONDS} s")
    lane.asked.append(1e3 * (answered - began))
    lane.reached.append(1e3 * (time.perf_counter() - answered))


def _in_force(origin: str) -> dict[str, float | str]:
    told = httpx.get(f"{origin}/stats", timeout=START_SECONDS).raise_for_status().json()
    return {"threshold": told["threshold"], "model": "{name}/{version}".format(**told["model"])}
