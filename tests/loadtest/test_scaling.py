from __future__ import annotations

from pathlib import Path

import pytest

from loadtest import nginx
from loadtest.arrangements import Arrangement, Plan, Turn, Way, agree
from loadtest.load import Closed
from loadtest.ratios import Spread
from loadtest.sections import hop, throughput

ONE = Arrangement(Way.direct, 1, 2)
TWO = Arrangement(Way.nginx, 2, 1)


def turn(answered: int, p50_ms: float, cpu_seconds: float = 1.0, rejected: int = 0) -> Turn:
    statuses = {"200": answered, "429": rejected}
    load = Closed(answered + rejected, 10.0, statuses, broken=0, p50_ms=p50_ms, p90_ms=20, p99_ms=30)
    return Turn(load, cpu_seconds, pss=512 * 2**20)


def test_every_number_of_replicas_is_reached_by_every_way() -> None:
    plan = Plan((Way.direct, Way.nginx), (1, 3), (16,), rounds=1, seconds=1)
    assert plan.arrangements(cores=8) == [
        Arrangement(Way.direct, 1, 8),
        Arrangement(Way.nginx, 1, 8),
        Arrangement(Way.direct, 3, 2),
        Arrangement(Way.nginx, 3, 2),
    ]


def test_more_replicas_than_cores_have_a_worker_each() -> None:
    plan = Plan((Way.direct,), (4,), (16,), rounds=1, seconds=1)
    assert plan.arrangements(cores=2) == [Arrangement(Way.direct, 4, 1)]


def test_throughput_is_compared_with_the_first_arrangement_round_by_round() -> None:
    # The machine was half as fast in the second round, for both.
    one = throughput.Lane(ONE, [turn(1000, 10), turn(500, 20)])
    two = throughput.Lane(TWO, [turn(1500, 8), turn(750, 16, rejected=50)])
    rows = throughput.Throughput("mobilenet", 16, [one, two]).rows()
    assert [(row["replicas x workers"], row["path"]) for row in rows] == [("1 x 2", "direct"), ("2 x 1", "nginx")]
    assert [row["÷ 1 x 2 direct"] for row in rows] == [Spread(1, 1, 1), Spread(1.5, 1.5, 1.5)]
    assert rows[1]["images/s"] == Spread(112.5, 75, 150)
    assert rows[1]["CPU ms per image"] == Spread.of([1000 / 1500, 1000 / 800])
    assert [row["failures"] for row in rows] == [0, 50]


def test_the_hop_is_what_a_way_takes_beyond_the_direct_one_at_the_same_size() -> None:
    lanes = [
        hop.Lane("10 KB", Way.direct, [turn(1000, 4, 2), turn(1000, 6, 2)]),
        hop.Lane("10 KB", Way.nginx, [turn(1000, 5, 3), turn(1000, 8, 4)]),
        hop.Lane("1 MB", Way.direct, [turn(1000, 7), turn(1000, 7)]),
        hop.Lane("1 MB", Way.nginx, [turn(1000, 9), turn(1000, 9)]),
    ]
    rows = hop.Hop("mobilenet", lanes).rows()
    assert [row["- direct, ms"] for row in rows] == [None, Spread(1.5, 1, 2), None, Spread(2, 2, 2)]
    assert rows[1]["- direct, CPU ms"] == Spread(1.5, 1, 2)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"church": 0.71, "golf ball": 0.29}, True),
        ({"church": 0.6, "golf ball": 0.4}, False),
        ({"golf ball": 0.7, "church": 0.3}, False),
    ],
)
def test_answers_agree_where_the_likeliest_is_the_same_as_likely(given: dict[str, float], same: bool) -> None:
    assert agree(given, {"church": 0.7, "golf ball": 0.3}) is same


def test_nginx_has_its_port_and_the_replicas_and_looks_no_name_up(tmp_path: Path) -> None:
    nginx.configure(tmp_path, 8123, ["127.0.0.1:1001", "127.0.0.1:1002"])
    upstream = (tmp_path / "upstream.conf").read_text()
    assert "listen 127.0.0.1:8123;" in (tmp_path / "nginx.conf").read_text()
    assert all(upstream.count(f"server 127.0.0.1:{port}") == 2 for port in (1001, 1002))
    assert "resolve" not in upstream.replace("# The replicas in compose", "").split("upstream", 1)[1]
