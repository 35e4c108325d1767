"""Two processes that serve as one, and pictures that change: one live table, one threshold that follows, one notice."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from typing import Any

import httpx

from tests.e2e.test_processes import children
from tests.e2e.under_load import RAW, TIMEOUT, until

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

PATH, LIVE = "/config/threshold", "/calibration/live"
AGREEMENT = 0.9


@contextmanager
def clients(of: httpx.Client, count: int = 4) -> Iterator[list[httpx.Client]]:
    """So many, whose connections are spread over the processes."""
    with ExitStack() as stack:
        made = [stack.enter_context(httpx.Client(base_url=of.base_url, timeout=TIMEOUT)) for _ in range(count)]
        for client in made:
            client.get("/health/live")
        yield made


def classify(several: list[httpx.Client], images: list[bytes], count: int, **query: Any) -> list[dict[str, Any]]:
    turns = islice(zip(cycle(several), cycle(images), strict=False), count)
    return [each.post("/classify", params=query, content=image, headers=RAW).json() for each, image in turns]


def metric(client: httpx.Client, name: str) -> float:
    """Of the tiny model; NaN while there is none, or no process to ask."""
    try:
        text = client.get("/metrics").text
    except httpx.TransportError:
        return math.nan
    lines = (line for line in text.splitlines() if line.startswith(f'{name}{{model="tiny/1"}}'))
    return float(next(lines, "nan").split()[-1])


def agrees(answer: dict[str, Any]) -> bool:
    return bool(answer["passes"]["low"][0]["label"] == answer["passes"]["high"][0]["label"])


def in_table(client: httpx.Client, count: int) -> bool:
    """Whether so many images of all processes are, each once: audits come after their answers."""
    return bool(client.get(LIVE).json()["images"] == count)


def threshold(client: httpx.Client) -> float:
    return float(client.get(PATH).json()["threshold"])


def is_kept(answer: dict[str, Any]) -> bool:
    """Whether the table certifies what was asked, at the threshold in force."""
    row = next(row for row in answer["live"]["rows"] if row["threshold"] == answer["threshold"])
    return bool(row["agreement_at_least"] >= AGREEMENT)


def test_threshold_follows_the_pictures_in_every_process(serve: Serve, make_jpeg: Callable[[int], bytes]) -> None:
    process, first = serve(processes="2", audit_probability="1")
    images = [make_jpeg(seed) for seed in range(60)]
    with clients(first) as several:
        one = several[0]
        known = classify(several, images, len(images), passes=True, threshold=1)  # of its own, and left out
        kind = [image for image, answer in zip(images, known, strict=True) if agrees(answer)]
        unkind = [image for image, answer in zip(images, known, strict=True) if not agrees(answer)]

        classify(several, kind, 120)
        until(lambda: in_table(one, 120))
        tables = [each.get(LIVE).json()["live"] for each in several]
        assert tables == tables[:1] * len(several)
        asked = one.patch(PATH, json={"min_agreement": AGREEMENT, "table": "live"}).json()
        assert (asked["threshold"], metric(one, "lowfirst_promise_lost")) == (0, 0)  # all agree
        assert [threshold(each) for each in several] == [0] * len(several)

        # Of every change there is a record, whichever process took it.
        values = [0.5, 0.6, 0.7, AGREEMENT]
        for each, value in zip(several, values, strict=True):
            each.patch(PATH, json={"min_agreement": value, "table": "live", "floor": value / 10})
        for each in several:
            changes = each.get(LIVE).json()["followed"]["changes"]
            assert [change["after"] for change in changes] == [0, *(value / 10 for value in values)]
        asked = one.patch(PATH, json={"min_agreement": AGREEMENT, "table": "live", "floor": None}).json()

        # The pictures change: what exits now is answered otherwise than by the last stage.
        classify(several, unkind, 60)
        until(lambda: in_table(one, 180))
        until(lambda: threshold(one) > 0)
        until(lambda: is_kept(one.get(LIVE).json()))  # the table may be a look ahead of the threshold
        until(lambda: len({threshold(each) for each in several}) == 1)
        answer = one.get(LIVE).json()
        changes = answer["followed"]["changes"]
        assert (changes[0]["after"], changes[-1]["after"]) == (0, answer["threshold"])
        assert one.get(PATH).json()["version"] == asked["version"]  # nothing was asked anew
        for each in several:  # whichever process it is that answers
            until(lambda: bool(each.get("/stats").json()["drift"]["differs"]))  # noqa: B023
            assert "Recent images differ" in each.get("/stats").json()["drift"]["notice"]
        until(lambda: metric(one, "lowfirst_drift") == 1)

        # What is known of the traffic is lost with the processes: threshold 1 keeps the promise, and that is told.
        for child in children(process):
            child.kill()
    with httpx.Client(base_url=first.base_url, timeout=TIMEOUT) as again:
        until(lambda: metric(again, "lowfirst_promise_lost") == 1)
        answer = again.get(PATH).json()
    assert (answer["threshold"], answer["table"]) == (1, "live")
    assert answer["followed"]["lost"] == "29 sampled images are needed, 0 exist"
