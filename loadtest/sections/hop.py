"""What a request takes longer through a proxy: one connection, one photograph in bodies of several sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from loadtest import bodies
from loadtest.arrangements import Arrangement, Plan, Site, Turn, Way, behind_nginx, standing
from loadtest.bodies import Bodies
from loadtest.padding import padded, small
from loadtest.ratios import Row, Spread, difference

BODY_BYTES = {"10 KB": 10_000, "100 KB": 100_000, "1 MB": 1_000_000}


@dataclass(frozen=True, slots=True)
class Lane:
    """Bodies of one size by one way, a turn a round."""

    size: str
    way: Way
    turns: list[Turn] = field(default_factory=list)

    @property
    def p50_ms(self) -> list[float]:
        """Median latencies, by round."""
        return [turn.load.p50_ms for turn in self.turns]

    @property
    def cpu_ms(self) -> list[float]:
        """Processor time an image, of all processes, by round."""
        return [turn.cpu_ms for turn in self.turns]


@dataclass(frozen=True, slots=True)
class Hop:
    """All sizes by all ways; what is direct is among them."""

    network: str
    lanes: list[Lane]

    @property
    def title(self) -> str:
        """Of the table."""
        return f"The hop, {self.network}, one connection"

    def rows(self) -> list[Row]:
        """For the table."""
        return [self._row(lane) for lane in self.lanes]

    def _row(self, lane: Lane) -> Row:
        direct = next(each for each in self.lanes if (each.size, each.way) == (lane.size, Way.direct))
        hops = lane is not direct
        return {
            "body": lane.size,
            "path": lane.way,
            "p50, ms": Spread.of(lane.p50_ms),
            "- direct, ms": difference(lane.p50_ms, direct.p50_ms) if hops else None,
            "CPU ms per image": Spread.of(lane.cpu_ms),
            "- direct, CPU ms": difference(lane.cpu_ms, direct.cpu_ms) if hops else None,
            "failures": float(sum(turn.load.failures for turn in lane.turns)),
        }


def hop(site: Site, plan: Plan) -> Iterator[list[Hop]]:
    """After each round, what is known so far. All ways are up side by side: one connection leaves cores idle.

    A replica has one worker, as one with several measures at its start whether an image that comes alone is to take
    them all: two processes need not decide alike. nginx stands before the very process that is asked directly.
    """
    ways = [Way.direct, *(way for way in plan.ways if way is not Way.direct)]
    result = Hop(site.network, [Lane(size, way) for size in BODY_BYTES for way in ways])
    with TemporaryDirectory(prefix="lowfirst-hop-") as folder, ExitStack() as stack:
        plain = small(site.photographs.read()[0], min(BODY_BYTES.values()))
        sent = {size: _body(padded(plain, count), Path(folder) / str(count)) for size, count in BODY_BYTES.items()}
        direct = stack.enter_context(standing(Arrangement(Way.direct, 1, 1), site))
        ups = {Way.direct: direct}
        if Way.nginx in ways:
            ups[Way.nginx] = stack.enter_context(behind_nginx(direct, site, "hop"))
        for way in ways:
            if way not in ups:
                ups[way] = stack.enter_context(standing(Arrangement(way, 1, 1), site))
        expected = direct.answers([plain])
        for lane in result.lanes:
            ups[lane.way].check(sent[lane.size].read(), expected)
            ups[lane.way].load(sent[lane.size], 1, plan.seconds / 4)
        for round_ in range(plan.rounds):
            for lane in result.lanes:
                lane.turns.append(ups[lane.way].load(sent[lane.size], 1, plan.seconds, round_))
            yield [result]


def _body(jpeg: bytes, folder: Path) -> Bodies:
    folder.mkdir()
    photograph = folder / "photograph.jpg"
    photograph.write_bytes(jpeg)
    return bodies.raw([photograph], folder)
