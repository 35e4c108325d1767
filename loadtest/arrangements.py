"""Replicas of the server side by side: reached directly, behind nginx, or on a Ray cluster. All share one Redis."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from redis import Redis, RedisError

from loadtest import nginx
from loadtest.bodies import JPEG, Bodies
from loadtest.contenders.registry import RAY_HIGH_THROUGHPUT
from loadtest.course import SCORE_TOLERANCE
from loadtest.load import Closed, closed_together, tool
from loadtest.servers import START_SECONDS, Server, ServerFailed, free_port, running

HOST = "127.0.0.1"
ROUTE = "/classify"

# Probabilities by label, the most likely one first.
Answer = Mapping[str, float]
Running = AbstractContextManager[Server]


class Way(StrEnum):
    """What stands between clients and replicas."""

    direct = "direct"
    nginx = "nginx"
    ray = "ray"
    ray_haproxy = "ray-haproxy"


# Programs that each takes.
NEEDED = {Way.direct: ("wrk", "redis-server"), Way.nginx: ("nginx",), Way.ray: ("ray",), Way.ray_haproxy: ("ray",)}

# Of a Ray cluster, beside the settings. By itself Ray starts its workers at niceness 15, behind the load that runs on
# the same cores here. Its proxy is Python; in its high-throughput mode HAProxy, which comes with it, stands there.
PLAIN = {"RAY_worker_niceness": "0"}
CLUSTER: Mapping[Way, Mapping[str, str]] = {Way.ray: PLAIN, Way.ray_haproxy: {**PLAIN, **RAY_HIGH_THROUGHPUT}}


@dataclass(frozen=True, slots=True)
class Arrangement:
    """``replicas`` of ``workers`` threads each, reached by ``way``."""

    way: Way
    replicas: int
    workers: int

    @property
    def size(self) -> str:
        """For tables."""
        return f"{self.replicas} x {self.workers}"

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.way}-{self.replicas}x{self.workers}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run was asked for.

    Attributes:
        ways, replicas: each number of replicas is reached by each way.
        connections: that are measured one after another.
        seconds: of load for each turn.
    """

    ways: tuple[Way, ...]
    replicas: tuple[int, ...]
    connections: tuple[int, ...]
    rounds: int
    seconds: float

    def arrangements(self, cores: int) -> list[Arrangement]:
        """All of them; the replicas of each divide the cores among them."""
        return [Arrangement(way, count, max(1, cores // count)) for count in self.replicas for way in self.ways]


@dataclass(frozen=True, slots=True)
class Site:
    """What all arrangements have in common.

    Attributes:
        network: for titles.
        settings: environment variables of every replica.
        photographs: that are posted.
        logs: folder of the processes' logs.
    """

    network: str
    settings: Mapping[str, str]
    photographs: Bodies
    logs: Path

    def log(self, name: str) -> Path:
        """Of one process."""
        return self.logs / f"{self.network}-{name}.log"

    def running(self, name: str, command: Sequence[str], environment: Mapping[str, str], port: int) -> Running:
        """One process, up once it classifies."""
        return running(command, environment, _url(port), self.photographs.read()[0], JPEG, self.log(name))


@dataclass(frozen=True, slots=True)
class Standing:
    """What is up.

    Attributes:
        urls: where images are posted to; several are to be driven at once, with a share of the connections each.
        servers: all processes that are part of it, but for Redis, with their descendants.
    """

    urls: tuple[str, ...]
    servers: tuple[Server, ...]

    def load(self, bodies: Bodies, connections: int, seconds: float, seed: int = 0) -> Turn:
        """Drive it."""
        before = self._cpu_seconds()
        seen = closed_together(self.urls, bodies, connections, seconds, seed=seed)
        spent = sum(taken - before.get(process, 0.0) for process, taken in self._cpu_seconds().items())
        return Turn(seen, spent, sum(server.pss() for server in self.servers))

    def answers(self, images: Sequence[bytes]) -> list[Answer]:
        """To each image, by every replica or proxy in turn."""
        headers = {"Content-Type": JPEG}
        asked = [httpx.post(url, content=image, headers=headers, timeout=60) for url in self.urls for image in images]
        top_k = [response.raise_for_status().json()["top_k"] for response in asked]
        return [{each["label"]: each["score"] for each in one} for one in top_k]

    def check(self, images: Sequence[bytes], expected: Sequence[Answer]) -> None:
        """Raises ServerFailed where one of ``images`` is answered otherwise than ``expected``."""
        for index, given in enumerate(self.answers(images)):
            wanted = expected[index % len(expected)]
            if not agree(given, wanted):
                raise ServerFailed(f"{self.urls[index // len(images)]} answered {given}, not {wanted}")

    def _cpu_seconds(self) -> dict[int, float]:
        """By process."""
        return {process: taken for server in self.servers for process, taken in server.cpu_seconds().items()}


def agree(given: Answer, expected: Answer) -> bool:
    """Whether the first of both is the same, as likely: processes may round otherwise in low precision."""
    first, *_ = expected
    return next(iter(given)) == first and abs(given[first] - expected[first]) <= SCORE_TOLERANCE


@dataclass(frozen=True, slots=True)
class Turn:
    """What was seen of an arrangement while it was loaded.

    Attributes:
        load: what ``wrk`` saw.
        cpu_seconds: processor time that all its processes took meanwhile, less that of any that ended.
        pss: bytes resident in them in the end; a page that several share counts once.
    """

    load: Closed
    cpu_seconds: float
    pss: int

    @property
    def cpu_ms(self) -> float:
        """Of all its processes, an image."""
        return 1e3 * self.cpu_seconds / max(1, self.load.requests)


@contextmanager
def standing(arrangement: Arrangement, site: Site) -> Iterator[Standing]:
    """Start it, and stop it in the end.

    Raises:
        ServerFailed: a process did not come up; the message names its log.
    """
    if arrangement.way in CLUSTER:
        with _cluster(arrangement, site) as cluster:
            yield Standing((cluster.url,), (cluster,))
        return
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(_replica(arrangement.workers, site, f"{arrangement.name}-{index}"))
            for index in range(arrangement.replicas)
        ]
        direct = Standing(tuple(replica.url for replica in replicas), tuple(replicas))
        if arrangement.way is Way.direct:
            yield direct
        else:
            yield stack.enter_context(behind_nginx(direct, site, arrangement.name))


@contextmanager
def behind_nginx(direct: Standing, site: Site, name: str) -> Iterator[Standing]:
    """The same replicas with nginx in front."""
    with TemporaryDirectory(prefix="lowfirst-nginx-") as temporary:
        folder, port = Path(temporary), free_port()
        folder.chmod(0o755)
        nginx.configure(folder, port, [server.origin.removeprefix("http://") for server in direct.servers])
        with site.running(f"{name}-proxy", nginx.command(tool("nginx"), folder), {}, port) as proxy:
            yield Standing((proxy.url,), (*direct.servers, proxy))


def _replica(workers: int, site: Site, name: str) -> Running:
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--host", HOST, "--port", str(port)]
    return site.running(name, command, {**site.settings, **_share(workers)}, port)


def _cluster(arrangement: Arrangement, site: Site) -> Running:
    port, workers = free_port(), arrangement.workers
    command = [sys.executable, "-m", "loadtest.ray_cluster", "--port", str(port)]
    command += ["--replicas", str(arrangement.replicas), "--workers", str(workers)]
    environment = {**site.settings, **_share(workers), **CLUSTER[arrangement.way]}
    return site.running(arrangement.name, command, environment, port)


def _share(workers: int) -> dict[str, str]:
    """Settings that keep a replica within its share of the machine; what ``lowfirst deploy`` chooses by itself."""
    return {"LOWFIRST_PROCESSES": "1", "LOWFIRST_WORKERS": str(workers), "LOWFIRST_DECODE_THREADS": "0"}


def _url(port: int) -> str:
    return f"http://{HOST}:{port}{ROUTE}"


@contextmanager
def redis_server() -> Iterator[str]:
    """An empty Redis that keeps nothing on disk; its URL."""
    with TemporaryDirectory(prefix="lowfirst-redis-") as folder:  # a socket's path must be short
        socket = f"{folder}/redis.sock"
        command = [tool("redis-server"), "--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            _wait(process, socket)
            yield f"unix://{socket}"
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], socket: str) -> None:
    until = time.monotonic() + START_SECONDS
    with Redis(unix_socket_path=socket) as client:
        while process.poll() is None and time.monotonic() < until:
            try:
                client.ping()
            except RedisError:
                time.sleep(0.01)
            else:
                return
    raise ServerFailed("redis-server did not come up")
