"""A Ray cluster of one node, and ``lowfirst deploy`` on it, until told to stop.

    LOWFIRST_MODEL=… python -m loadtest.ray_cluster --port 8000 --replicas 2 --workers 1

Every replica has as many of the cluster's processors as it has workers, and all replicas have all of them.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from loadtest.load import tool
from loadtest.servers import START_SECONDS, free_port

HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 100_000_000  # requests do not go through it


def main(
    port: Annotated[int, typer.Option(help="Of Ray Serve's proxy.")],
    replicas: Annotated[int, typer.Option(min=1)] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Of each replica.")] = 1,
) -> None:
    """Bring both up, as a user would, and wait."""
    signal.signal(signal.SIGTERM, _interrupt)
    with TemporaryDirectory(prefix="lowfirst-ray-") as folder:
        address = f"{HOST}:{free_port()}"
        head = subprocess.Popen(_head(address, replicas * workers, Path(folder)))
        try:
            _wait(head, address)
            subprocess.run(_deploy(address, port, replicas, workers), check=True)
            raise typer.Exit(head.wait())
        finally:
            head.terminate()
            head.wait()


def _head(address: str, cpus: int, folder: Path) -> list[str]:
    """Ports that Ray would take on any machine are free ones here: other clusters may run."""
    ports = {name: free_port() for name in ("ray-client-server-port", "dashboard-agent-listen-port")}
    return [
        tool("ray"), "start", "--head", "--block", "--node-ip-address", HOST, "--port", address.rpartition(":")[2],
        "--num-cpus", str(cpus), "--object-store-memory", str(OBJECT_STORE_BYTES), "--temp-dir", str(folder),
        "--include-dashboard", "false", "--disable-usage-stats",
        *(each for name, port in ports.items() for each in (f"--{name}", str(port))),
    ]  # fmt: skip


def _deploy(address: str, port: int, replicas: int, workers: int) -> list[str]:
    return [
        sys.executable, "-m", "service.cli", "deploy", "--address", address, "--host", HOST, "--port", str(port),
        "--replicas", str(replicas), "--cpus-per-replica", str(workers),
    ]  # fmt: skip


def _wait(head: subprocess.Popen[bytes], address: str) -> None:
    """Until the cluster listens."""
    host, _, port = address.partition(":")
    until = time.monotonic() + START_SECONDS
    while head.poll() is None and time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"no Ray cluster listens at {address} after {START_SECONDS} seconds")


def _interrupt(*_: object) -> None:
    """Unwind, so that the cluster is stopped."""
    raise SystemExit


if __name__ == "__main__":
    typer.run(main)
