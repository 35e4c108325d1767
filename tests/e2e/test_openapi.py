"""The server does what its OpenAPI document says, for whatever schemathesis makes of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = 15  # of each route and kind: about 1,000 requests in all, the same ones every time


def test_every_route_answers_as_documented(serve: Serve, tmp_path: Path) -> None:
    _, client = serve()  # its own: the threshold is changed
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", CONFIG),
            *("run", str(client.base_url.join("/openapi.json"))),
            *("--max-examples", str(EXAMPLES), "--generation-deterministic", "--continue-on-failure"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    operations = sum(len(methods) for methods in client.get("/openapi.json").json()["paths"].values())
    assert f"Tested: {operations}\n" in done.stdout
