"""Two servers, each a process, that share one Redis; it is killed under load."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from tests.conftest import RedisServer
from tests.e2e.under_load import TIMEOUT, posting, until

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]


@pytest.fixture
def replica(serve: Serve, redis_server: RedisServer, two_versions: Path) -> Callable[[], httpx.Client]:
    """Starts one more server of ``tiny/1`` that shares the Redis, and its results in it; gives a client."""
    shared = {"redis_url": redis_server.url, "cache_ttl_seconds": "60", "model_store": str(two_versions)}
    return lambda: serve(model="tiny/1", **shared)[1]


SOON = 5.0  # a second, on a machine that does nothing else


def threshold(client: httpx.Client) -> tuple[float, int]:
    """The threshold in force, and the config's version."""
    told = client.get("/config/threshold").json()
    return told["threshold"], told["version"]


def patch(client: httpx.Client, to: float) -> int:
    """The status of changing the threshold."""
    return client.patch("/config/threshold", json={"threshold": to}).status_code


def is_up(client: httpx.Client) -> bool:
    return "\nlowfirst_store_up 1.0\n" in client.get("/metrics").text


def load(clients: list[httpx.Client], make_jpeg: Callable[[int], bytes]) -> AbstractContextManager[list[int]]:
    """Each of two servers is posted the same photographs, half of which it has seen before."""
    bodies = [make_jpeg(seed) for seed in range(20)]

    def body(number: int) -> bytes:
        turn = number // len(clients)
        return bodies[turn % len(bodies)] + turn.to_bytes(4, "big") * (turn % 2)

    return posting([client.base_url for client in clients], body)


def test_replica_finds_the_last_threshold_and_applies_the_next_within_a_second(
    replica: Callable[[], httpx.Client],
) -> None:
    one = replica()
    assert patch(one, 0.3) == 200
    other = replica()
    assert threshold(other) == (0.3, 2)
    for step, to in enumerate((0.1, 0.9, 0.4)):
        assert patch(one, to) == 200
        assert until(lambda to=to, step=step: threshold(other) == (to, 3 + step)) < 1  # type: ignore[misc]
    stale = other.patch("/config/threshold", json={"threshold": 0.5}, headers={"If-Match": '"4"'})
    assert (stale.status_code, stale.json()["error"]["bound"]) == (412, 5)


def served(client: httpx.Client) -> tuple[str, int, int]:
    """Name and version of the model that answers, and the config's version."""
    told = client.get("/stats").json()
    return told["model"]["name"], told["model"]["version"], told["config_version"]


def test_replicas_serve_the_model_that_one_was_told_to_and_lose_no_image(
    replica: Callable[[], httpx.Client], make_jpeg: Callable[[int], bytes]
) -> None:
    one, other = replica(), replica()
    with load([one, other], make_jpeg) as statuses:
        assert one.patch("/config/model", json={"model": "tiny/2"}).status_code == 200
        assert until(lambda: served(other) == ("tiny", 2, 2)) < SOON
        assert other.patch("/config/model", json={"model": "other"}).status_code == 200
        assert until(lambda: served(one) == ("other", 1, 3)) < SOON
        assert one.patch("/config/model", json={"model": "broken"}).status_code == 422
        seen = len(statuses)
        until(lambda: len(statuses) > seen + 10)
    assert set(statuses) == {200}
    assert served(replica()) == served(one) == served(other) == ("other", 1, 3)


def test_redis_killed_under_load_fails_no_image_and_all_comes_back(
    replica: Callable[[], httpx.Client], redis_server: RedisServer, make_jpeg: Callable[[int], bytes]
) -> None:
    replicas = one, other = [replica(), replica()]
    assert patch(one, 0.3) == 200
    until(lambda: threshold(other) == (0.3, 2))
    with load(replicas, make_jpeg) as statuses:
        until(lambda: len(statuses) > 50)
        redis_server.kill()
        until(lambda: not is_up(one) and not is_up(other))
        assert [patch(client, 0.7) for client in replicas] == [503, 503]
        assert [threshold(client) for client in replicas] == [(0.3, 2)] * 2
        seen = len(statuses)
        until(lambda: len(statuses) > seen + 50)
        redis_server.start()  # empty
        until(lambda: is_up(one) and is_up(other))
        assert patch(other, 0.7) == 200
        until(lambda: threshold(one) == threshold(other) == (0.7, 3))
        seen = len(statuses)
        until(lambda: len(statuses) > seen + 50)
    assert set(statuses) == {200}


def test_redis_that_does_not_answer_ends_the_start_with_one_line(environment: dict[str, str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve"],
        env={**environment, "LOWFIRST_REDIS_URL": "redis://:secret@127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: LOWFIRST_REDIS_URL: 127.0.0.1:1 does not answer (")
    assert all(" INFO " in line for line in ended.stderr.splitlines()[:-1])
    assert "secret" not in ended.stderr
