"""Programs beside the server that docker-compose.yml starts too, with docker/'s own files."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from loadtest import nginx
from loadtest.servers import free_port
from tests.e2e.prometheus import DOCKER
from tests.e2e.under_load import TIMEOUT, until

EXPORTERS = ("prometheus-redis-exporter", "prometheus-nginx-exporter")
ALERTMANAGER = "prometheus-alertmanager"


def missing(*programs: str) -> str:
    """Those of them that this machine lacks, which are the names of Debian's packages too."""
    return " ".join(program for program in programs if shutil.which(program) is None)


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
def listening(command: list[str], port: int) -> Iterator[httpx.Client]:
    """A client of a server process, once it listens."""
    where = ("127.0.0.1", port)

    def listens() -> bool:
        assert process.poll() is None
        with socket.socket() as probe:
            return probe.connect_ex(where) == 0

    with running(command) as process, httpx.Client(base_url=f"http://{where[0]}:{where[1]}", timeout=TIMEOUT) as client:
        until(listens)
        yield client


@contextmanager
def proxy(folder: Path, replicas: list[str]) -> Iterator[tuple[httpx.Client, int]]:
    """nginx before the replicas, host:port each: a client of it, and the port where it says what it counts."""
    port, status = free_port(), free_port()
    nginx.configure(folder, port, replicas, status)
    with listening(nginx.command("nginx", folder), port) as client:
        yield client, status


@contextmanager
def exporting(redis: str, status: int) -> Iterator[dict[str, str]]:
    """Exporters of Redis at that address, and of nginx' status page: the job of each, and its host:port."""
    redis_port, proxy_port = free_port(), free_port()
    commands = {
        redis_port: ["prometheus-redis-exporter", "-redis.addr", redis],
        proxy_port: ["prometheus-nginx-exporter", f"-nginx.scrape-uri=http://127.0.0.1:{status}/status"],
    }
    with ExitStack() as stack:
        for port, command in commands.items():
            stack.enter_context(listening([*command, "-web.listen-address", f"127.0.0.1:{port}"], port))
        yield {"redis": f"127.0.0.1:{redis_port}", "proxy": f"127.0.0.1:{proxy_port}"}


@contextmanager
def alertmanager(folder: Path) -> Iterator[httpx.Client]:
    """A client of an Alertmanager that keeps its state in ``folder``."""
    port = free_port()
    config = DOCKER / "alertmanager/alertmanager.yml"
    options = [f"--config.file={config}", f"--storage.path={folder}", "--cluster.listen-address="]
    command = [ALERTMANAGER, *options, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with listening(command, port) as client:
        yield client
