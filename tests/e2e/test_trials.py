"""Canary, shadow and guard over real processes, with two real models of which one is worse."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.state.base import place
from tests.conftest import own_redis
from tests.e2e.under_load import RAW, TIMEOUT, until

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

PATH = "/config/model"
SHARE = 0.4


@pytest.fixture(scope="module")
def images(make_jpeg: Callable[[int], bytes]) -> list[bytes]:
    """Some of the share, some not."""
    made = [make_jpeg(seed) for seed in range(30)]
    assert 5 < sum(place(image) < SHARE for image in made) < 25
    return made


@pytest.fixture(scope="module")
def server(serve_once: Serve, trial_store: Path) -> httpx.Client:
    """Two processes that serve ``tiny/1`` as one."""
    return serve_once(processes="2", model_store=str(trial_store), model="tiny/1", feature_slots="1024")[1]


@pytest.fixture(scope="module")
def sharing(trial_store: Path) -> Iterator[dict[str, str]]:
    """Settings of replicas that share a Redis."""
    with own_redis() as redis:
        redis.start()
        yield {"redis_url": redis.url, "model_store": str(trial_store), "model": "tiny/1"}


@pytest.fixture(scope="module")
def replicas(serve_once: Serve, sharing: dict[str, str]) -> Sequence[httpx.Client]:
    """Two servers, each of two processes."""
    return [serve_once(processes="2", feature_slots="1024", **sharing)[1] for _ in range(2)]


@pytest.fixture
def both(server: httpx.Client) -> Iterator[Sequence[httpx.Client]]:
    """A client of each process, which serve ``tiny/1`` alone at first, and again in the end."""
    with ExitStack() as stack:
        made = [stack.enter_context(httpx.Client(base_url=server.base_url, timeout=TIMEOUT)) for _ in range(4)]
        for client in made:
            client.get("/health/live")
        yield made
        if made[0].get(PATH).json()["trial"] is not None:
            patch(made[0], cancel=True)
        patch(made[0], model="tiny/1")
        until(lambda: versions(made) == [1] * len(made))


def patch(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.patch(PATH, json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def versions(clients: Sequence[httpx.Client]) -> list[int]:
    """Of the model that each process says it serves."""
    return [client.get(PATH).json()["models"][0]["version"] for client in clients]


def answered(client: httpx.Client, image: bytes) -> dict[str, Any]:
    answer = client.post("/classify", content=image, headers=RAW)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def compared(client: httpx.Client, images: int) -> dict[str, Any]:
    """The comparison, once it is of so many images."""
    until(lambda: client.get(PATH).json()["trial"]["images"] >= images)
    told: dict[str, Any] = client.get(PATH).json()["trial"]
    return told


def counted(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^lowfirst_{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def test_the_share_is_exact_by_the_hash_and_one_image_meets_one_model_in_every_process(
    both: Sequence[httpx.Client], images: list[bytes]
) -> None:
    patch(both[0], model="tiny/2", share=SHARE)
    expected = [2 if place(image) < SHARE else 1 for image in images]
    for client in both:  # at once: all processes had it ready
        assert [answered(client, image)["model"]["version"] for image in images] == expected
    picked = expected.count(2) * len(both)
    told = compared(both[0], picked)
    assert (told["images"], told["disagreements"], told["agreement"]) == (picked, 0, 1.0)
    assert told["agreement_at_least"] == pytest.approx(0.05 ** (1 / picked))
    assert told["served"]["exit_rate"] == told["tried"]["exit_rate"]
    for side in (told["served"], told["tried"]):
        assert side["latency_ms"]["p50"] <= side["latency_ms"]["p99"]
        assert (side["errors"], side["mean_ms"] > 0, side["mean_mmacs"] > 0) == (0, True, True)
    for client in both:  # whichever process it is that answers
        assert client.get(PATH).json()["trial"]["images"] == picked
        assert counted(client, 'comparisons_total{model="tiny/2"}') >= picked
        assert counted(client, 'trial_share{kind="canary",model="tiny/2"}') == SHARE


def test_no_client_sees_a_shadow(both: Sequence[httpx.Client], images: list[bytes]) -> None:
    def seen(client: httpx.Client) -> list[object]:
        kept = ("model", "top_k", "exit", "reason", "confidence", "threshold", "mmacs")
        answers = [answered(client, image) for image in images]
        return [[answer[name] for name in kept] for answer in answers]

    before = [seen(client) for client in both]
    patch(both[0], model="tiny/3", shadow=True, share=SHARE)
    assert [seen(client) for client in both] == before
    picked = sum(place(image) < SHARE for image in images) * len(both)
    told = compared(both[1], picked)
    assert (told["kind"], told["images"], told["disagreements"]) == ("shadow", picked, picked)


def test_the_guard_takes_a_worse_model_back_in_every_process(both: Sequence[httpx.Client], images: list[bytes]) -> None:
    patch(both[0], model="tiny/3", share=1, max_disagreement=0.02)
    assert answered(both[0], images[0])["model"]["version"] == 3
    until(lambda: all(client.get(PATH).json()["trial"] is None for client in both))
    for client in both:
        assert answered(client, images[0])["model"]["version"] == 1
        ended = client.get(PATH).json()["ended"]
        assert (ended["model"], ended["outcome"]) == ({"name": "tiny", "version": 3}, "disagreement")
        assert "0.02 is allowed" in ended["why"]
        assert counted(client, 'trial_cancelled_timestamp_seconds{model="tiny/1"}') == pytest.approx(ended["at"])


def test_promotion_serves_it_and_cancelling_does_not(both: Sequence[httpx.Client], images: list[bytes]) -> None:
    patch(both[0], model="tiny/2", share=SHARE)
    told = patch(both[1], cancel=True)
    assert (told["trial"], told["ended"]["outcome"]) == (None, "cancelled")
    assert {answered(client, image)["model"]["version"] for client in both for image in images[:6]} == {1}
    patch(both[0], model="tiny/2", share=SHARE)
    told = patch(both[1], promote=True)
    assert (told["models"], told["ended"]["outcome"]) == ([{"name": "tiny", "version": 2}], "promoted")
    until(lambda: versions(both) == [2] * len(both))
    assert {answered(client, image)["model"]["version"] for client in both for image in images[:6]} == {2}


def test_a_replica_that_starts_later_tries_it_too(
    replicas: Sequence[httpx.Client], sharing: dict[str, str], serve: Serve, images: list[bytes]
) -> None:
    patch(replicas[0], model="tiny/2", share=SHARE)
    _, later = serve(**sharing)
    expected = [2 if place(image) < SHARE else 1 for image in images[:12]]
    for replica in (*replicas, later):
        assert [answered(replica, image)["model"]["version"] for image in images[:12]] == expected
    version = patch(later, cancel=True)["version"]
    for replica in replicas:
        until(lambda replica=replica: replica.get(PATH).json()["version"] == version)  # type: ignore[misc]
        assert {answered(replica, image)["model"]["version"] for image in images[:12]} == {1}


def test_replicas_count_together_and_the_guard_of_one_cancels_for_all(
    replicas: Sequence[httpx.Client], images: list[bytes]
) -> None:
    patch(replicas[0], model="tiny/3", shadow=True)
    for image in images[:8]:
        for replica in replicas:
            answered(replica, image)
    for replica in replicas:
        told = compared(replica, 16)
        assert (told["images"], told["disagreements"], told["tried"]["errors"]) == (16, 16, 0)
        assert told["tried"]["latency_ms"]["p50"] > 0
    at_most = 0.5 * (0.05 ** (1 / 8) + 0.05 ** (1 / 16))  # the lower bound of all 16 is above it, not of either's 8
    patch(replicas[1], max_disagreement=at_most)
    until(lambda: all(replica.get(PATH).json()["trial"] is None for replica in replicas))
    for replica in replicas:
        ended = replica.get(PATH).json()["ended"]
        assert ended["outcome"] == "disagreement"
        assert "16 of 16 images differ" in ended["why"]
