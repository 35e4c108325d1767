"""Half as much again as lowfirst can do, with leave to answer from the low pass: nobody need be turned away."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtest.contenders.registry import LOWFIRST, Contender
from loadtest.course import CONNECTIONS, Course
from loadtest.load import Opened, Stage, opened
from loadtest.models import Network
from loadtest.ratios import Row

TIMES = 1.5
FLOOR = 0.0
TARGET_LATENCY_MS = 500


@dataclass(frozen=True, slots=True)
class BrownOut:
    """lowfirst with ResNet-18.

    Attributes:
        capacity: images a second just before, with no floor, on 16 connections of the same generator.
        during: at one and a half times it, with the floor.
        reasons: images answered meanwhile, by ``reason`` of ``lowfirst_images_total``.
    """

    capacity: float
    during: Opened
    reasons: dict[str, int]

    @property
    def rejected(self) -> int:
        """Answers that were 429."""
        return self.during.statuses.get("429", 0)

    @property
    def browned_out(self) -> float:
        """Share of the images that were answered from the low pass because of the load."""
        return self.reasons.get("brownout", 0) / max(1, sum(self.reasons.values()))

    def rows(self) -> list[Row]:
        """For the table."""
        return [
            {
                "capacity, images/s": self.capacity,
                "answered, images/s": self.during.rate,
                "429": self.rejected,
                "other failures": self.during.failures - self.rejected,
                "dropped": self.during.dropped,
                "p50 ms": self.during.p50_ms,
                "p99 ms": self.during.p99_ms,
                "share browned out": self.browned_out,
            }
        ]


def brown_out(course: Course) -> BrownOut:
    """One run."""
    contender = Contender(LOWFIRST, "cascade", course.precision, course.runtime)
    short, long = (3, 6) if course.quick else (15, 30)
    with course.serving(contender, Network.resnet18, target_latency_ms=TARGET_LATENCY_MS) as server:
        (measured,) = opened(server.url, course.raw, [Stage("capacity", short, users=CONNECTIONS)])
        httpx.patch(f"{server.origin}/config/threshold", json={"floor": FLOOR}).raise_for_status()
        before = _reasons(server.origin)
        (during,) = opened(server.url, course.raw, [Stage("during", long, rate=TIMES * measured.rate)])
        after = _reasons(server.origin)
    return BrownOut(measured.rate, during, {reason: after[reason] - before.get(reason, 0) for reason in after})


def _reasons(origin: str) -> dict[str, int]:
    """Images answered so far, by reason."""
    counts: dict[str, int] = {}
    for family in text_string_to_metric_families(httpx.get(f"{origin}/metrics").raise_for_status().text):
        for sample in family.samples:
            if sample.name == "lowfirst_images_total":
                reason = sample.labels["reason"]
                counts[reason] = counts.get(reason, 0) + int(sample.value)
    return counts
