"""``lowfirst serve`` over real sockets."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import httpx
import pytest
from typer.testing import CliRunner

from service.cli import app as command_line
from service.inference.latency import LatencyProfile, LatencyTable
from tests.e2e.sockets import connection

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

RAW = {"Content-Type": "image/jpeg"}
MIB = 1024 * 1024
TIMEOUT = 60


def head(length: int) -> bytes:
    """The head of a request with a body of that length."""
    return (
        f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n".encode()
    )


def answer(received: BinaryIO) -> tuple[int, bytes]:
    """Status and body of the next answer."""
    status = int(received.readline().split()[1])
    headers = dict(line.lower().split(b": ", 1) for line in iter(received.readline, b"\r\n"))
    return status, received.read(int(headers[b"content-length"]))


def peak_memory(process: subprocess.Popen[str]) -> int:
    """The most bytes the process has held since it was last asked (proc(5): VmHWM, and clear_refs to reset it)."""
    proc = Path(f"/proc/{process.pid}")
    found = re.search(r"VmHWM:\s+(\d+) kB", (proc / "status").read_text())
    assert found
    (proc / "clear_refs").write_text("5")
    return int(found[1]) * 1024


def test_a_photograph_is_classified(server: Server, jpeg: bytes) -> None:
    response = server[1].post("/classify", content=jpeg, headers=RAW)
    assert response.status_code == 200
    assert response.json()["model"] == {"name": "tiny", "version": 1}


def test_requests_share_a_connection(server: Server, jpeg: bytes) -> None:
    with connection(server[1]) as opened, opened.makefile("rb") as received:
        for body, status in ((jpeg, 200), (b"no image", 415), (jpeg, 200)):
            opened.sendall(head(len(body)) + body)
            assert answer(received)[0] == status


def test_pipelined_requests_are_answered_in_order(server: Server, jpeg: bytes) -> None:
    with connection(server[1]) as opened, opened.makefile("rb") as received:
        opened.sendall((head(len(jpeg)) + jpeg) * 2 + head(2) + b"no")
        assert [answer(received)[0] for _ in range(3)] == [200, 200, 415]


def test_http_answers_what_the_command_line_answers(
    server: Server, environment: dict[str, str], make_jpeg: Callable[..., bytes], tmp_path: Path
) -> None:
    photographs = [make_jpeg(seed) for seed in range(12)]
    files = [tmp_path / f"{seed}.jpg" for seed in range(12)]
    for file, photograph in zip(files, photographs, strict=True):
        file.write_bytes(photograph)
    confidences = [
        server[1].post("/classify", content=image, headers=RAW).json()["confidence"] for image in photographs
    ]
    threshold = str(sorted(confidences)[6])
    command = ["classify", "--json", "--threshold", threshold, *map(str, files)]
    told = CliRunner().invoke(command_line, command, env=environment)
    same = ("label", "score", "top_k", "exit", "reason", "confidence", "threshold", "mmacs", "model")
    offline = [{name: one[name] for name in same} for one in json.loads(told.stdout)]
    online = [
        server[1].post(f"/classify?threshold={threshold}", content=image, headers=RAW).json() for image in photographs
    ]
    assert [{name: one[name] for name in same} for one in online] == offline
    assert [one["exit"] for one in offline].count("low") == 5


def test_a_body_of_100_megabytes_is_refused_and_the_connection_lives_on(server: Server, jpeg: bytes) -> None:
    with connection(server[1]) as opened, opened.makefile("rb") as received:
        opened.sendall(head(100 * MIB))
        status, body = answer(received)  # before a byte of the body is sent
        error = json.loads(body)["error"]
        assert (status, error["value"], error["bound"]) == (413, 100 * MIB, 16 * MIB)
        for _ in range(100):
            opened.sendall(bytes(MIB))
        opened.sendall(head(len(jpeg)) + jpeg)
        assert answer(received)[0] == 200
    assert server[1].post("/classify", content=jpeg, headers=RAW).status_code == 200


def test_a_client_that_waits_to_be_asked_is_refused_before_it_sends(server: Server) -> None:
    with connection(server[1]) as opened, opened.makefile("rb") as received:
        opened.sendall(head(100 * MIB)[:-2] + b"Expect: 100-continue\r\n\r\n")
        assert answer(received)[0] == 413


def test_bad_bodies_take_little_memory(server: Server, jpeg: bytes) -> None:
    process, client = server
    client.post("/classify", content=jpeg, headers=RAW)
    first = peak_memory(process)
    many_parts = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 200_000
    hostile = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + b"\r\n--xy" * 2_000_000 + b"\r\n--x--"
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    nested = b"[" * (16 * MIB)
    requests: list[tuple[str, bytes | Iterator[bytes], dict[str, str]]] = [
        ("/classify", bytes(16 * MIB), RAW),
        ("/classify", jpeg[:300] + bytes(15 * MIB), RAW),
        ("/classify", (bytes(MIB) for _ in range(100)), RAW),
        ("/classify", many_parts, form),
        ("/classify", hostile, form),
        ("/classify", nested, {"Content-Type": "application/json"}),
        ("/classify", b'{"image": "' + b"A" * (16 * MIB) + b'"}', {"Content-Type": "application/json"}),
        ("/classify/batch", many_parts, form),
    ]
    for path, body, headers in requests:
        before = peak_memory(process)
        assert 400 <= client.post(path, content=body, headers=headers).status_code < 500
        assert peak_memory(process) - before < 100 * MIB
        assert client.post("/classify", content=jpeg, headers=RAW).status_code == 200
    assert (
        client.patch("/config/threshold", content=nested, headers={"Content-Type": "application/json"}).status_code
        == 413
    )
    peak_memory(process)
    assert client.post("/classify", content=jpeg, headers=RAW).status_code == 200
    assert peak_memory(process) - first < 100 * MIB  # nor is it kept


def test_a_client_that_hangs_up_frees_its_place(server: Server, jpeg: bytes) -> None:
    for sent in (head(len(jpeg)) + jpeg[:100], head(len(jpeg)) + jpeg):
        with connection(server[1]) as opened:
            opened.sendall(sent)
            if len(sent) < len(jpeg):
                wait_until_in_flight(server[1], 100)
    wait_until_in_flight(server[1], 0)


def wait_until_in_flight(client: httpx.Client, size: int) -> None:
    """Until so many bytes are in flight."""
    end = time.monotonic() + TIMEOUT
    while client.get("/stats").json()["queue"]["bytes_in_flight"] != size:
        assert time.monotonic() < end


def test_a_server_starts_with_a_saved_profile(serve: Serve, jpeg: bytes, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    LatencyProfile(LatencyTable(({1: 0.001}, {1: 0.002}))).write(profile)
    client = serve(profile=str(profile))[1]
    assert client.post("/classify", content=jpeg, headers=RAW).status_code == 200


@pytest.mark.usefixtures("openvino")
def test_openvino_serves_what_eager_serves(serve: Serve, server: Server, jpeg: bytes) -> None:
    client = serve(runtime="openvino")[1]
    assert client.get("/stats").json()["runtime"] == "openvino"
    for threshold in (0, 1):
        ours, theirs = (
            each.post(f"/classify?threshold={threshold}", content=jpeg, headers=RAW).json()
            for each in (client, server[1])
        )
        assert (ours["exit"], ours["label"]) == (theirs["exit"], theirs["label"])
        assert ours["score"] == pytest.approx(theirs["score"], rel=1e-3)


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/stats", "/metrics", "/docs", "/openapi.json"])
def test_what_people_and_machines_watch_is_there(server: Server, path: str) -> None:
    assert server[1].get(path).status_code == 200
