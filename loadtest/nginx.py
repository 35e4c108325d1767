"""nginx with the files of docker/nginx, in a folder and on a port of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from loadtest.servers import free_port

FILES = Path(__file__).resolve().parent.parent / "docker" / "nginx"
UPSTREAMS = ("lowfirst", "lowfirst_by_client")


def configure(folder: Path, port: int, replicas: Sequence[str], status: int = 0) -> None:
    """Write the files into ``folder``, but for the ports and the replicas' addresses, host:port, as they are.

    Args:
        status: the port where it tells its exporter what it counts; 0 takes a free one.
    """
    config = _replace(r"listen 8080;", f"listen 127.0.0.1:{port};", (FILES / "nginx.conf").read_text())
    config = _replace(r"listen 8081;", f"listen 127.0.0.1:{status or free_port()};", config)
    upstream = _replace(r"resolver .*;", "", (FILES / "upstream.conf").read_text())
    for name in UPSTREAMS:
        servers = "".join(rf"server {replica}\2; " for replica in replicas)
        upstream = _replace(
            rf"(upstream {name} {{[^}}]*?)server lowfirst:8000 resolve(.*?);", rf"\1{servers}", upstream
        )
    (folder / "nginx.conf").write_text(config)
    (folder / "upstream.conf").write_text(upstream)


def command(program: str, folder: Path) -> list[str]:
    """What starts it. Run by root its workers are nobody: they must be able to enter ``folder``."""
    return [program, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def _replace(pattern: str, by: str, text: str) -> str:
    """Exactly once."""
    changed, count = re.subn(pattern, by, text)
    if count != 1:
        raise ValueError(f"{FILES} has {count} times {pattern}, not once")
    return changed
