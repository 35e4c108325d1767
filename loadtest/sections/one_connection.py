"""What a server adds to an image that comes alone: its latency, less that of the same work called directly."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtest.contenders.registry import Contender
from loadtest.course import Course
from loadtest.models import Network
from loadtest.ratios import Row, Spread, difference
from loadtest.sections.saturation import contenders


@dataclass(slots=True)
class Alone:
    """One contender with one network, over the rounds.

    Attributes:
        contender, network: who, with what.
        served_ms: median latency on one connection, by round.
        called_ms: median of decoding and the passes called directly, in one thread of a process, by round.
    """

    contender: Contender
    network: Network
    served_ms: list[float] = field(default_factory=list)
    called_ms: list[float] = field(default_factory=list)

    @property
    def added_ms(self) -> Spread:
        """By the server, over the rounds."""
        return difference(self.served_ms, self.called_ms)


@dataclass(frozen=True, slots=True)
class OneConnection:
    """All contenders with the cascade."""

    lanes: list[Alone]

    def rows(self) -> list[Row]:
        """For the table."""
        return [
            {
                "network": lane.network,
                "contender": lane.contender.label,
                "served, p50 ms": Spread.of(lane.served_ms),
                "called, p50 ms": Spread.of(lane.called_ms),
                "added ms": lane.added_ms,
            }
            for lane in self.lanes
        ]


def one_connection(course: Course) -> OneConnection:
    """Round after round, every contender with the cascade in turn."""
    cascades = [each for each in contenders(course, "same") if each.kind == "cascade"]
    if course.quick:
        cascades = cascades[:2]
    lanes = [Alone(contender, network) for network in course.networks for contender in cascades]
    for _ in range(course.rounds):
        called = {network: course.bare_loop(cascades[0], network).alone_ms for network in course.networks}
        for lane in lanes:
            with course.serving(lane.contender, lane.network) as server:
                lane.served_ms.append(course.drive(lane.contender, server, connections=1).p50_ms)
            lane.called_ms.append(called[lane.network])
    return OneConnection(lanes)
