"""What docker-compose.yml starts, as processes: two replicas, Redis, proxy and Prometheus, from docker/'s own files."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from loadtest import nginx
from tests.conftest import need

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

DOCKER = Path(__file__).parents[2] / "docker"
RAW = {"Content-Type": "image/jpeg"}
KEY = {"Authorization": "Bearer the-key-of-this-test"}
TIMEOUT = 60
CLIENTS = 4
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Topology:
    """Clients of the proxy and of Prometheus; the replicas; Redis."""

    proxy: httpx.Client
    prometheus: httpx.Client
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
            with (
                started(proxy_command(folder, addresses), folder / "proxy-port") as proxy,
                started(prometheus_command(folder, addresses), folder / "prometheus-port") as prometheus,
            ):
                yield Topology(proxy, prometheus, (first, second), redis, start)


def redis_command(folder: Path) -> list[str]:
    listen = ["--port", "0", "--unixsocket", f"{folder}/redis.sock"]
    return ["redis-server", str(DOCKER / "redis/redis.conf"), *listen, "--dir", str(folder)]


def proxy_command(folder: Path, replicas: list[str]) -> list[str]:
    """nginx with the files of docker/, but for the port and the replicas' addresses."""
    nginx.configure(folder, free_port(folder / "proxy-port"), replicas)
    return nginx.command("nginx", folder)


def prometheus_command(folder: Path, replicas: list[str]) -> list[str]:
    """Prometheus with the files of docker/, but for the replicas' addresses and how often it looks."""
    config = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "500ms")
    config["rule_files"] = [str(DOCKER / "prometheus" / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    assert job.pop("dns_sd_configs")[0]["names"] == ["lowfirst"]
    job["static_configs"] = [{"targets": replicas}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    listen = f"--web.listen-address=127.0.0.1:{free_port(folder / 'prometheus-port')}"
    files = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus"]
    return ["prometheus", *files, listen, "--log.level=warn"]


def free_port(file: Path) -> int:
    """A port, noted in ``file``."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    file.write_text(str(port))
    return port


def address(client: httpx.Client) -> str:
    return f"{client.base_url.host}:{client.base_url.port}"


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended at the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(TIMEOUT)


@contextmanager
def started(command: list[str], port: Path) -> Iterator[httpx.Client]:
    """A client of a server process, once it listens."""
    where = ("127.0.0.1", int(port.read_text()))

    def listens() -> bool:
        assert process.poll() is None
        with socket.socket() as probe:
            return probe.connect_ex(where) == 0

    with running(command) as process, httpx.Client(base_url=f"http://{where[0]}:{where[1]}", timeout=TIMEOUT) as client:
        until(listens)
        yield client


def until(reached: Callable[[], bool]) -> float:
    """Look until it is so; the seconds that took."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() < began + TIMEOUT
        time.sleep(0.01)
    return time.monotonic() - began


def images(replica: Server) -> float:
    """How many it has answered."""
    counts = re.findall(r"^lowfirst_images_total\{.*\} (\S+)$", replica[1].get("/metrics").text, re.MULTILINE)
    return sum(map(float, counts))


def threshold(replica: Server) -> float:
    return float(replica[1].get("/config/threshold").json()["threshold"])


@contextmanager
def load(url: httpx.URL, jpeg: bytes) -> Iterator[Counter[int]]:
    """``CLIENTS`` post one photograph after another; gives the counts of the statuses, 0 for none, which grow."""
    statuses: Counter[int] = Counter()
    stopping = threading.Event()

    def post() -> None:
        with httpx.Client(base_url=url, timeout=TIMEOUT) as client:
            while not stopping.is_set():
                try:
                    status = client.post("/classify", content=jpeg, headers=RAW).status_code
                except httpx.TransportError:
                    status = 0
                statuses[status] += 1

    threads = [threading.Thread(target=post) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def more(statuses: Counter[int], answers: int = 20) -> None:
    """Until so many more photographs are answered."""
    enough = statuses[200] + answers
    until(lambda: statuses[200] >= enough)


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
    command = [*proxy_command(tmp_path, ["127.0.0.1:1", "127.0.0.1:2"]), "-t"]
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
    assert proxy.get("/metrics").status_code == 404

    def asked(expression: str) -> list[str]:
        found = topology.prometheus.get("/api/v1/query", params={"query": expression}).json()
        return [sample["value"][1] for sample in found["data"]["result"]]

    until(lambda: asked("sum(up)") == ["2"])
    until(lambda: asked("sum(lowfirst_images_total)") == ["10"])

    topology.redis.kill()
    broken = proxy.patch("/config/threshold", json={"threshold": 0.32}, headers=KEY)
    assert (broken.status_code, broken.json()["error"]["code"]) == (503, "store_unavailable")


def test_a_replicas_end_costs_nothing_that_was_not_in_it(topology: Topology, jpeg: bytes) -> None:
    (killed, client), drained = topology.replicas
    port = client.base_url.port
    assert port is not None
    with load(topology.proxy.base_url, jpeg) as statuses:
        more(statuses)
        killed.kill()
        more(statuses)
        failed = statuses.total() - statuses[200]
        assert failed <= CLIENTS  # those whose answer had begun
        again = topology.restart(port)
        until(lambda: images(again) > 0)  # the proxy has found it
        drained[0].send_signal(signal.SIGTERM)
        assert drained[0].wait(TIMEOUT) == 0
        more(statuses)
    assert statuses.total() - statuses[200] == failed
    again[0].kill()
    again[0].wait()
    nobody = topology.proxy.post("/classify", content=jpeg, headers=RAW)
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (503, "unavailable")
    assert nobody.headers["X-Request-ID"] == nobody.json()["error"]["request_id"]
