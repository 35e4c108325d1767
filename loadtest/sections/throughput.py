"""Images a second of several replicas by several ways, beside one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from loadtest.arrangements import Answer, Arrangement, Plan, Site, Turn, standing
from loadtest.ratios import Row, Spread, ratio
from service.inference.device import cores

CHECKED = 5
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Lane:
    """One arrangement, a turn a round."""

    arrangement: Arrangement
    turns: list[Turn] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Images a second, by round."""
        return [turn.load.rate for turn in self.turns]


@dataclass(frozen=True, slots=True)
class Throughput:
    """All arrangements; the first one is what the others are compared with."""

    network: str
    connections: int
    lanes: list[Lane]

    @property
    def title(self) -> str:
        """Of the table."""
        return f"Throughput, {self.network}, {self.connections} connections"

    def rows(self) -> list[Row]:
        """For the table."""
        first = self.lanes[0]
        return [
            {
                "replicas x workers": lane.arrangement.size,
                "path": lane.arrangement.way,
                "images/s": Spread.of(lane.rates),
                f"÷ {first.arrangement.size} {first.arrangement.way}": ratio(lane.rates, first.rates),
                "p50, ms": Spread.of([turn.load.p50_ms for turn in lane.turns]),
                "p99, ms": Spread.of([turn.load.p99_ms for turn in lane.turns]),
                "CPU ms per image": Spread.of([turn.cpu_ms for turn in lane.turns]),
                "resident MiB": Spread.of([turn.pss / MIB for turn in lane.turns]),
                "failures": float(sum(turn.load.failures for turn in lane.turns)),
            }
            for lane in self.lanes
        ]


def throughput(site: Site, plan: Plan) -> Iterator[list[Throughput]]:
    """After each round, what is known so far: results for each number of connections.

    In a round each arrangement is started, loaded and stopped in turn, as a Ray cluster takes processor time while it
    idles.
    """
    arrangements = plan.arrangements(cores())
    results = [Throughput(site.network, count, [Lane(each) for each in arrangements]) for count in plan.connections]
    checked = site.photographs.read()[:CHECKED]
    expected: list[Answer] = []
    for round_ in range(plan.rounds):
        for index, arrangement in enumerate(arrangements):
            with standing(arrangement, site) as stands:
                expected = expected or stands.answers(checked)[:CHECKED]
                stands.check(checked, expected)
                stands.load(site.photographs, max(plan.connections), plan.seconds / 4)
                for result in results:
                    turn = stands.load(site.photographs, result.connections, plan.seconds, round_)
                    result.lanes[index].turns.append(turn)
        yield results
