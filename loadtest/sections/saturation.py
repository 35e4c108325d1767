"""How many images a second each contender answers when there are always some to answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from loadtest.bare_loop import BareLoop
from loadtest.contenders.registry import LOWFIRST, Contender
from loadtest.contenders.work import Kind
from loadtest.course import Course
from loadtest.load import Closed
from loadtest.models import Network
from loadtest.ratios import Row, Spread, ceiling, ratio
from loadtest.servers import ServerFailed

Group = Literal["same", "defaults"]


@dataclass(slots=True)
class Lane:
    """One contender with one network, over the rounds.

    Attributes:
        contender, network: who, with what.
        rounds: what was seen in each.
        bare_loops: the same work with no server, in each.
        failure: why it has no more rounds.
    """

    contender: Contender
    network: Network
    rounds: list[Closed] = field(default_factory=list)
    bare_loops: list[BareLoop] = field(default_factory=list)
    failure: str | None = None

    @property
    def rates(self) -> list[float]:
        """Images a second, by round."""
        return [seen.rate for seen in self.rounds]


@dataclass(frozen=True, slots=True)
class Saturation:
    """A group of contenders; the first one of each network, lowfirst, is what the others are compared with."""

    group: Group
    lanes: list[Lane]

    def reference(self, network: Network) -> Lane:
        """lowfirst, as the group's ratios take it."""
        return next(lane for lane in self.lanes if lane.network == network)

    def ratio(self, lane: Lane) -> Spread:
        """How many times this contender's images lowfirst answers."""
        return ratio(self.reference(lane.network).rates, lane.rates)

    def share_of_bare_loop(self, lane: Lane) -> Spread:
        """Of the images that the same work gets through with no server, round by round."""
        return ratio(lane.rates, [loop.best.images_per_second for loop in lane.bare_loops])

    def ceiling(self, lane: Lane) -> float | None:
        """What ``ratio`` could be if serving itself cost nothing; None where the work is the same."""
        if lane.contender.kind == "cascade":
            return None
        ours = self.reference(lane.network).bare_loops[0]
        return ceiling(lane.bare_loops[0].cost, ours.cost, ours.escalated)

    def rows(self) -> list[Row]:
        """For the table."""
        return [self._row(lane) for lane in self.lanes]

    def _row(self, lane: Lane) -> Row:
        named: Row = {"network": lane.network, "contender": lane.contender.label}
        if not lane.rounds:
            return {**named, "not answered": lane.failure}
        return {
            **named,
            "images/s": Spread.of(lane.rates),
            "p50 ms": Spread.of([seen.p50_ms for seen in lane.rounds]),
            "p99 ms": Spread.of([seen.p99_ms for seen in lane.rounds]),
            "lowfirst ÷ this": self.ratio(lane),
            "ceiling of that": self.ceiling(lane),
            "of bare loop": self.share_of_bare_loop(lane),
            "not answered": sum(seen.failures for seen in lane.rounds),
        }

    def best_peers(self, network: Network, count: int) -> list[Lane]:
        """The fastest ones, fastest first."""
        peers = [lane for lane in self.lanes if lane.network == network and lane.contender.name != LOWFIRST]
        return sorted((lane for lane in peers if lane.rounds), key=lambda lane: -Spread.of(lane.rates).median)[:count]


def contenders(course: Course, group: Group) -> list[Contender]:
    """Who takes part: lowfirst first, then every peer that is installed.

    "same": all with one runtime and precision, each peer with the cascade and with the single-scale network.
    "defaults": lowfirst as it starts, and the single-scale network in what PyTorch takes by default.
    """
    if group == "defaults":
        ours = [Contender(LOWFIRST, "cascade", "auto", runtime) for runtime in ("auto", "eager")]
        names = course.peers[:1] if course.quick else course.peers
        peers = [Contender(name, "single", "float32", "eager") for name in names]
    else:
        kinds: list[Kind] = ["cascade"] if course.quick else ["cascade", "single"]
        ours = [Contender(LOWFIRST, "cascade", course.precision, course.runtime, each) for each in ("auto", "1")]
        peers = [Contender(name, kind, course.precision, course.runtime) for kind in kinds for name in course.peers]
    return ours + [peer for peer in peers if peer.is_installed]


def saturation(course: Course, group: Group) -> Saturation:
    """Round after round, every contender in turn."""
    lanes = [Lane(each, network) for network in course.networks for each in contenders(course, group)]
    for _ in range(course.rounds):
        loops: dict[tuple[Network, str, str, str], BareLoop] = {}
        for lane in lanes:
            contender, network = lane.contender, lane.network
            if lane.failure is not None:
                continue
            work = (network, contender.kind, contender.precision, contender.runtime)
            if work not in loops:
                loops[work] = course.bare_loop(contender, network)
            try:
                with course.serving(contender, network) as server:
                    seen = course.drive(contender, server)
            except ServerFailed as error:
                if contender.name == LOWFIRST:
                    raise
                lane.failure = str(error)
                course.console.log(f"[red]{contender.label}: {error}", highlight=False)
                continue
            lane.rounds.append(seen)
            lane.bare_loops.append(loops[work])
    return Saturation(group, lanes)
