"""A Ray cluster of one node, and ``lowfirst deploy`` on it, until told to stop.

    LOWFIRST_MODEL=… python -m loadtest.ray_cluster --port 8000 --replicas 2 --workers 1

Every replica has as many of the cluster's processors as it has workers, and all replicas have all of them.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import psutil
import typer

from loadtest.load import tool
from loadtest.servers import START_SECONDS, free_port, unwind_on_sigterm

HOST = "127.0.0.1"
ADDRESS_FILE = "ray_current_cluster"  # that Ray writes into its folder
OBJECT_STORE_BYTES = 100_000_000  # requests do not go through it
KILL_SECONDS = 2


def main(
    port: Annotated[int, typer.Option(help="Of Ray Serve's proxy.")],
    replicas: Annotated[int, typer.Option(min=1)] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Of each replica.")] = 1,
) -> None:
    """Bring both up, as a user would, and wait. Nobody else can use the cluster: it has a token of its own."""
    unwind_on_sigterm()
    with TemporaryDirectory(prefix="lowfirst-ray-", ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
        head = subprocess.Popen(_head(replicas * workers, folder), env=environment)
        try:
            address = _address(head, Path(folder) / ADDRESS_FILE)
            deploy = _deploy(address, port, replicas, workers)
            raise typer.Exit(subprocess.call(deploy, env=environment) or head.wait())
        finally:
            _end(head)


def _head(cpus: int, folder: str) -> list[str]:
    """Ports that Ray takes wherever it runs are free ones here: there may be other clusters, and a Redis."""
    ports = {name: str(free_port()) for name in ("port", "ray-client-server-port", "dashboard-agent-listen-port")}
    return [
        tool("ray"), "start", "--head", "--block", "--num-cpus", str(cpus), "--temp-dir", folder,
        "--object-store-memory", str(OBJECT_STORE_BYTES), "--include-dashboard", "false", "--disable-usage-stats",
        *(each for name, port in ports.items() for each in (f"--{name}", port)),
    ]  # fmt: skip


def _deploy(address: str, port: int, replicas: int, workers: int) -> list[str]:
    return [
        sys.executable, "-m", "service.cli", "deploy", "--address", address, "--host", HOST, "--port", str(port),
        "--replicas", str(replicas), "--cpus-per-replica", str(workers),
    ]  # fmt: skip


def _address(head: subprocess.Popen[bytes], file: Path) -> str:
    """Where the cluster listens, once it does."""
    until = time.monotonic() + START_SECONDS
    while head.poll() is None and time.monotonic() < until:
        if file.exists() and (address := file.read_text().strip()):
            return address
        time.sleep(0.1)
    raise SystemExit(f"no Ray cluster is up after {START_SECONDS} seconds")


def _end(head: subprocess.Popen[bytes]) -> None:
    """At once: told to stop, Ray would first drain a node that serves for half a minute."""
    if head.poll() is None:
        family = psutil.Process(head.pid).children(recursive=True)
        head.kill()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, timeout=KILL_SECONDS)
    head.wait()


if __name__ == "__main__":
    typer.run(main)
