"""Whether lowfirst grows: its resident memory early, and after a hundred times as many requests."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.contenders.registry import LOWFIRST, Contender
from loadtest.course import CONNECTIONS, Course
from loadtest.load import closed
from loadtest.models import Network
from loadtest.ratios import Row
from loadtest.servers import Server

SLICE_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Memory:
    """lowfirst with MobileNet: resident bytes after ``early`` and after ``late`` requests."""

    early: int
    late: int
    early_bytes: int
    late_bytes: int

    def rows(self) -> list[Row]:
        """For the table."""
        return [
            {"requests": requests, "MiB": size / 2**20, "÷ the first": size / self.early_bytes}
            for requests, size in ((self.early, self.early_bytes), (self.late, self.late_bytes))
        ]


def memory(course: Course) -> Memory:
    """One run, to the first second at which there were 1,000 requests, then 100,000."""
    contender = Contender(LOWFIRST, "cascade", course.precision, course.runtime)
    few, many = (100, 1_000) if course.quick else (1_000, 100_000)
    with course.serving(contender, Network.mobilenet) as server:
        early = _drive(course, server, few)
        early_bytes = server.rss()
        late = early + _drive(course, server, many - early)
        return Memory(early, late, early_bytes, server.rss())


def _drive(course: Course, server: Server, requests: int) -> int:
    """Post until there were ``requests``; how many there were."""
    done = 0
    while done < requests:
        done += closed(server.url, course.raw, CONNECTIONS, SLICE_SECONDS).requests
    return done
