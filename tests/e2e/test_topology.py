"""What docker-compose.yml starts, as processes: two replicas, Redis, proxy and Prometheus, from docker/'s own files."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from loadtest import nginx
from loadtest.servers import free_port
from tests.conftest import need
from tests.e2e.programs import listening, running
from tests.e2e.prometheus import DOCKER, Prometheus, scraping
from tests.e2e.under_load import RAW, TIMEOUT, posting, until

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

KEY = {"Authorization": "Bearer the-key-of-this-test"}
CLIENTS = 4
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Topology:
    """A client of the proxy; Prometheus; the replicas; Redis."""

    proxy: httpx.Client
    prometheus: Prometheus
    replicas: tuple[Server, Server]
    redis: subprocess.Popen[bytes]
    restart: Callable[[int], Server]


@pytest.fixture
def topology(serve: Serve) -> Iterator[Topology]:
    """As in docker-compose.yml, on free ports."""
    for program in ("redis-server", "nginx", "prometheus"):
        need(shutil.which(program) is not None, program, f"apt-get install {program}")
    with tempfile.TemporaryDirectory(prefix="lowfirst-") as temporary:  # a socket's path must be short
        folder = Path(temporary)
        folder.chmod(0o755)  # nginx's workers are nobody where root runs the tests
        url = f"unix://{folder}/redis.sock"

        def start(port: int = 0) -> Server:
            return serve(port=str(port), redis_url=url, admin_key=KEY["Authorization"].split()[1])

        with running(redis_command(folder)) as redis, ThreadPoolExecutor() as threads:
            until((folder / "redis.sock").exists)
            first, second = threads.map(lambda _: start(), range(2))
            addresses = [address(client) for _, client in (first, second)]
            port = free_port()
            with (
                listening(proxy_command(folder, port, addresses), port) as proxy,
                scraping("prometheus.yml", {"static_configs": [{"targets": addresses}]}, folder) as prometheus,
            ):
                yield Topology(proxy, prometheus, (first, second), redis, start)


def redis_command(folder: Path) -> list[str]:
    listen = ["--port", "0", "--unixsocket", f"{folder}/redis.sock"]
    return ["redis-server", str(DOCKER / "redis/redis.conf"), *listen, "--dir", str(folder)]


def proxy_command(folder: Path, port: int, replicas: list[str]) -> list[str]:
    """nginx with the files of docker/, but for the port and the replicas' addresses."""
    nginx.configure(folder, port, replicas)
    return nginx.command("nginx", folder)


def address(client: httpx.Client) -> str:
    return f"{client.base_url.host}:{client.base_url.port}"


def images(replica: Server) -> float:
    """How many it has answered."""
    counts = re.findall(r"^lowfirst_images_total\{.*\} (\S+)$", replica[1].get("/metrics").text, re.MULTILINE)
    return sum(map(float, counts))


def threshold(replica: Server) -> float:
    return float(replica[1].get("/config/threshold").json()["threshold"])


def more(statuses: list[int], answers: int = 20) -> None:
    """Until so many more photographs are answered."""
    enough = statuses.count(200) + answers
    until(lambda: statuses.count(200) >= enough)


def failures(statuses: list[int]) -> int:
    return len(statuses) - statuses.count(200)


def refused(proxy: httpx.Client, length: int) -> tuple[int, str]:
    """Status and body of the answer to a head that announces so many bytes."""
    connection = http.client.HTTPConnection(proxy.base_url.host, proxy.base_url.port or 80, timeout=TIMEOUT)
    connection.putrequest("POST", "/classify/batch")
    connection.putheader("Content-Length", str(length))
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_proxys_files_are_valid(tmp_path: Path) -> None:
    need(shutil.which("nginx") is not None, "nginx", "apt-get install nginx")
    command = [*proxy_command(tmp_path, free_port(), ["127.0.0.1:1", "127.0.0.1:2"]), "-t"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


def test_replicas_behind_the_proxy_serve_as_one(topology: Topology, jpeg: bytes) -> None:
    proxy, replicas = topology.proxy, topology.replicas
    for number in range(10):
        answer = proxy.post("/classify", content=jpeg, headers={**RAW, "X-Request-ID": f"mine-{number}"})
        assert (answer.status_code, answer.headers["X-Request-ID"]) == (200, f"mine-{number}")
        assert answer.json()["request_id"] == f"mine-{number}"
    assert [images(replica) for replica in replicas] == [5, 5]
    assert len(proxy.get("/health/ready").headers["X-Request-ID"]) == 32

    assert proxy.patch("/config/threshold", json={"threshold": 0.31}).status_code == 401
    assert proxy.patch("/config/threshold", json={"threshold": 0.31}, headers=KEY).status_code == 200
    assert until(lambda: [threshold(replica) for replica in replicas] == [0.31] * 2) < 1

    status, body = refused(proxy, 64 * MIB + 1)
    assert (status, httpx.Response(status, text=body).json()["error"]["code"]) == (413, "image_too_large")
    large = proxy.post("/classify", content=bytes(17 * MIB), headers=RAW)
    assert (large.status_code, large.json()["error"]["bound"]) == (413, 16 * MIB)  # the replica's own
    assert {proxy.get(path).status_code for path in ("/metrics", "/metrics/")} == {404}

    until(lambda: topology.prometheus.value("sum(up)") == 2)
    until(lambda: topology.prometheus.value("sum(lowfirst_images_total)") == 10)

    topology.redis.kill()
    broken = proxy.patch("/config/threshold", json={"threshold": 0.32}, headers=KEY)
    assert (broken.status_code, broken.json()["error"]["code"]) == (503, "store_unavailable")


def test_a_replicas_end_costs_nothing_that_was_not_in_it(topology: Topology, jpeg: bytes) -> None:
    (killed, client), drained = topology.replicas
    port = client.base_url.port
    assert port is not None
    with posting([topology.proxy.base_url] * CLIENTS, lambda _: jpeg) as statuses:
        more(statuses)
        killed.kill()
        more(statuses)
        failed = failures(statuses)
        assert failed <= CLIENTS  # those whose answer had begun
        again = topology.restart(port)
        until(lambda: images(again) > 0)  # the proxy has found it
        drained[0].send_signal(signal.SIGTERM)
        assert drained[0].wait(TIMEOUT) == 0
        more(statuses)
    assert failures(statuses) == failed
    again[0].kill()
    again[0].wait()
    nobody = topology.proxy.post("/classify", content=jpeg, headers=RAW)
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (503, "unavailable")
    assert nobody.headers["X-Request-ID"] == nobody.json()["error"]["request_id"]
