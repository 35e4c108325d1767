"""Latency below saturation: arrivals at a steady rate, whether or not the ones before have been answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtest.contenders.registry import Contender
from loadtest.course import Course
from loadtest.load import Opened, Stage, opened
from loadtest.models import Network
from loadtest.ratios import Row, Spread, ratio
from loadtest.sections.saturation import Saturation

SHARE = 0.7
PEERS = 2


@dataclass(slots=True)
class Arrivals:
    """One contender at one rate, over the rounds.

    Attributes:
        contender, network: who, with what.
        rate: arrivals a second.
        of: whose capacity the rate is a share of.
        rounds: what was seen in each.
    """

    contender: Contender
    network: Network
    rate: float
    of: str
    rounds: list[Opened] = field(default_factory=list)

    @property
    def tail(self) -> Spread:
        """p99 over p50, round by round."""
        return ratio([seen.p99_ms for seen in self.rounds], [seen.p50_ms for seen in self.rounds])


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """For each network: lowfirst and the best peers at 70 % of the best one's capacity; lowfirst at 70 % of its own."""

    lanes: list[Arrivals]

    def rows(self) -> list[Row]:
        """For the table."""
        return [
            {
                "network": lane.network,
                "contender": lane.contender.label,
                "70 % of": lane.of,
                "arrivals/s": lane.rate,
                **{
                    f"{name} ms": Spread.of([getattr(seen, f"{name}_ms") for seen in lane.rounds])
                    for name in ("p50", "p95", "p99", "max")
                },
                "p99 ÷ p50": lane.tail,
                "not answered": sum(seen.failures + seen.dropped for seen in lane.rounds),
            }
            for lane in self.lanes
        ]


def open_loop(course: Course, saturation: Saturation) -> OpenLoop:
    """Round after round, at the rates that ``saturation`` gives."""
    lanes: list[Arrivals] = []
    for network in course.networks:
        ours, best = saturation.reference(network), saturation.best_peers(network, 1 if course.quick else PEERS)
        rate = SHARE * Spread.of(best[0].rates).median
        lanes += [Arrivals(each.contender, network, rate, best[0].contender.label) for each in [ours, *best]]
        lanes.append(Arrivals(ours.contender, network, SHARE * Spread.of(ours.rates).median, ours.contender.label))
    for _ in range(course.rounds):
        for lane in lanes:
            with course.serving(lane.contender, lane.network) as server:
                stage = Stage("steady", max(2, round(course.seconds)), rate=lane.rate)
                lane.rounds += opened(server.url, course.bodies(lane.contender), [stage])
    return OpenLoop(lanes)
