"""Models are exchanged under load: no request fails, and what was replaced takes no memory."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from tests.e2e.under_load import RAW, TIMEOUT, repeating

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

SWITCHES = 20
CLIENTS = 4


def test_no_request_fails_during_twenty_switches(serve: Serve, two_versions: Path, jpeg: bytes) -> None:
    process, client = serve(model_store=str(two_versions), model="tiny/1")
    outcomes: Counter[tuple[int, int]] = Counter()

    def post() -> None:
        answer = posted.post("/classify", content=jpeg, headers=RAW)
        version = answer.json()["model"]["version"] if answer.status_code == 200 else 0
        outcomes[answer.status_code, version] += 1

    memory = []
    with httpx.Client(base_url=client.base_url, timeout=TIMEOUT) as posted, repeating(*[post] * CLIENTS):
        for switch in range(SWITCHES):
            version = 2 - switch % 2
            before = outcomes[200, version]
            assert client.patch("/config/model", json={"model": f"tiny/{version}"}).status_code == 200
            while outcomes[200, version] < before + CLIENTS:
                assert process.poll() is None
            memory.append(psutil.Process(process.pid).memory_info().rss)
    assert set(outcomes) == {(200, 1), (200, 2)}
    assert client.get("/config").json()["version"] == 1 + SWITCHES
    assert memory[-1] < memory[SWITCHES // 2] + 20_000_000
