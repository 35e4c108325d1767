"""Settings that cannot be served with: one sentence, no traceback, and a status that says so."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

TIMEOUT = 100

BAD = {
    "LOWFIRST_PORT": ("abc", "LOWFIRST_PORT is 'abc'; it must be a valid integer"),
    "LOWFIRST_MODEL": ("nope", "model is 'nope'"),
    "LOWFIRST_DEVICE": ("cuda", "device is 'cuda'; it must be auto, cpu or a CUDA device of this machine"),
    "LOWFIRST_RUNTIME": ("abacus", "runtime is 'abacus'; it must be auto, eager, openvino or cuda"),
    "LOWFIRST_PROFILE": ("/nowhere.json", "/nowhere.json is not a latency profile"),
    "LOWFIRST_PRECISION": ("float17", "precision is 'float17'; it must be auto, float32, bfloat16"),
}


def start(environment: dict[str, str], **settings: str) -> subprocess.Popen[str]:
    """A server that cannot come up."""
    command = [sys.executable, "-m", "service.cli", "serve"]
    return subprocess.Popen(command, env={**environment, **settings}, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def started(environment: dict[str, str]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A server for each bad setting, all started at once."""
    processes = {name: start(environment, **{name: value}) for name, (value, _) in BAD.items()}
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_setting_is_told_in_one_sentence(started: dict[str, subprocess.Popen[str]], name: str) -> None:
    if name == "LOWFIRST_DEVICE" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    _, told = started[name].communicate(timeout=TIMEOUT)
    assert started[name].returncode == 1
    *log, last = told.splitlines()
    assert last.startswith("error: " + BAD[name][1])
    assert all(" INFO " in line for line in log)


def test_a_port_in_use_is_told_in_one_sentence(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(environment, LOWFIRST_PORT=str(port), LOWFIRST_LOG_LEVEL="error")
        _, told = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    assert str(port) in told
    assert "address already in use" in told
    assert len(told.splitlines()) == 1
