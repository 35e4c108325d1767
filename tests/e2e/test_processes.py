"""Several processes that serve as one, over real sockets: what clients and operators see of them."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import MakeJpeg, RedisServer
from tests.e2e.sockets import connection, rest
from tests.e2e.under_load import RAW, TIMEOUT, until

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

CONNECTIONS = 16


@pytest.fixture(scope="module")
def pair(serve_once: Serve) -> Server:
    """Two processes, for all tests that leave them alive."""
    return serve_once(processes="2", metrics_port="0", replica="one")


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that serve: of the one that was started, those that its template forked."""
    return [child for template in psutil.Process(process.pid).children() for child in template.children()]


def connections(child: psutil.Process, client: httpx.Client) -> int:
    """How many are open there."""
    with_us = [each for each in child.net_connections("tcp") if each.laddr and each.laddr.port == client.base_url.port]
    return sum(each.status == psutil.CONN_ESTABLISHED for each in with_us)


@contextmanager
def clients(of: httpx.Client, count: int = CONNECTIONS) -> Iterator[Sequence[httpx.Client]]:
    """So many, each with a connection of its own that is open."""
    with ExitStack() as stack:
        made = [stack.enter_context(httpx.Client(base_url=of.base_url, timeout=TIMEOUT)) for _ in range(count)]
        for client in made:
            client.get("/health/live")
        yield made


def counted(client: httpx.Client, name: str) -> float:
    """The sum of a counter's values."""
    values = re.findall(rf"^lowfirst_{name}\{{.*\}} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert values
    return sum(map(float, values))


def half_sent(client: httpx.Client, jpeg: bytes) -> socket.socket:
    """A connection with a request whose head and half of whose body are sent."""
    opened = connection(client)
    opened.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n")
    opened.sendall(f"Content-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg[:100])
    return opened


def finish(opened: socket.socket, jpeg: bytes) -> bytes:
    """Send the other half; the answer, until the server hangs up."""
    opened.sendall(jpeg[100:])
    return rest(opened)


def half_received(client: httpx.Client) -> int:
    """How many requests of ``half_sent`` are there."""
    return int(client.get("/stats").json()["queue"]["bytes_in_flight"]) // 100


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended; it may be that nobody has asked how."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def end(child: psutil.Process) -> None:
    """Kill it, and wait until its connections are closed: only then is it no zombie any more."""
    child.kill()
    until(lambda: not psutil.pid_exists(child.pid))


def test_connections_are_spread_evenly(pair: Server) -> None:
    process, client = pair
    client.close()  # its own connection counts too
    both = children(process)
    until(lambda: [connections(each, client) for each in both] == [0, 0])
    with clients(client):
        assert [connections(each, client) for each in both] == [CONNECTIONS // 2] * 2
    until(lambda: [connections(each, client) for each in both] == [0, 0])


def test_all_processes_predict_the_same(pair: Server) -> None:
    with clients(pair[1], 4) as several:
        predicted = [each.get("/config/threshold").json()["predicted"] for each in several]
    assert predicted == predicted[:1] * 4
    assert predicted[0]["mean_ms"] > 0


def test_counts_are_those_of_all_processes(pair: Server, jpeg: bytes) -> None:
    with clients(pair[1], 4) as several:
        before = counted(several[0], "images_total")
        for number, each in enumerate(several, start=1):
            for _ in range(number):
                assert each.post("/classify", content=jpeg, headers=RAW).status_code == 200
        for each in several:  # whichever process it is that answers
            assert counted(each, "images_total") == before + 10
            assert counted(each, "confidence_count") == before + 10
            assert each.get("/stats").json()["images"] == before + 10
        stats = several[0].get("/stats").json()
    assert stats["latency_ms"]["p50"] <= stats["latency_ms"]["p95"] <= stats["latency_ms"]["p99"]
    assert 0 <= stats["exit_rate"] <= 1
    assert stats["images_per_second"] > 0


def test_what_a_threshold_would_have_done_is_of_the_images_of_all_processes(pair: Server, make_jpeg: MakeJpeg) -> None:
    with clients(pair[1], 4) as several:

        def confidence(number: int) -> float:
            told = several[number % 4].post("/classify?threshold=0", content=make_jpeg(number), headers=RAW).json()
            return float(told["confidence"])

        middle = sorted(map(confidence, range(8)))[4]

        def previewed(client: httpx.Client) -> tuple[int, int]:
            recent = client.get("/config/threshold/preview", params={"threshold": middle}).json()["recent"]
            return recent["images"], round(recent["images"] * recent["exit_rate"])

        images, exited = previewed(several[0])
        sure = sum(confidence(number) > middle for number in range(8))
        for each in several:  # whichever process it is that answers
            assert previewed(each) == (images + 8, exited + sure)
    assert sure == 3


def test_what_python_and_the_system_tell_is_there_too(pair: Server) -> None:
    text = httpx.get(f"{pair[1].base_url}/metrics", timeout=TIMEOUT).text
    told = dict(re.findall(r"^(process_\w+) (\S+)$", text, re.MULTILINE))
    assert float(told["process_resident_memory_bytes"]) > 2 * 50_000_000
    assert float(told["process_cpu_seconds_total"]) > 0
    assert 'python_gc_collections_total{generation="2"}' in text
    assert re.search(r"^python_info\{.*\} 1\.0$", text, re.MULTILINE)


def test_work_in_flight_is_that_of_all_processes(pair: Server, jpeg: bytes) -> None:
    with httpx.Client(base_url=pair[1].base_url, timeout=TIMEOUT) as client:
        opened = [half_sent(client, jpeg) for _ in range(4)]
        until(lambda: half_received(client) == 4)
        for each in opened:
            each.close()
        until(lambda: half_received(client) == 0)


def test_a_threshold_holds_in_every_process_once_it_is_answered(pair: Server) -> None:
    with clients(pair[1], 4) as several:
        for number, patched in enumerate(several):
            told = patched.patch("/config/threshold", json={"threshold": 0.1 * (number + 1)}).json()
            for each in several:
                seen = each.get("/config/threshold").json()
                assert (seen["threshold"], seen["version"]) == (told["threshold"], told["version"])
        stale = several[0].patch("/config/threshold", json={"threshold": 0.9}, headers={"If-Match": '"1"'})
        assert stale.status_code == 412


def test_readiness_names_the_processes(pair: Server) -> None:
    answer = httpx.get(f"{pair[1].base_url}/health/ready", timeout=TIMEOUT)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "processes": {"ready": 2, "count": 2}})


def test_a_model_is_switched_in_every_process(serve: Serve, two_versions: Path) -> None:
    _, client = serve(processes="2", model_store=str(two_versions), model="tiny/1")
    with clients(client, 4) as several:
        assert several[0].patch("/config/model", json={"model": "tiny/2"}).status_code == 200
        assert [each.get("/stats").json()["model"]["version"] for each in several] == [2] * 4
        for each in several:
            shown = set(re.findall(r'^lowfirst_threshold\{model="(.*)"\}', each.get("/metrics").text, re.MULTILINE))
            assert shown == {"tiny/2"}


def test_a_killed_process_is_replaced_and_its_counts_stay(serve: Serve, jpeg: bytes) -> None:
    process, client = serve(processes="2")
    client.close()
    with clients(client, 8) as several:
        assert several[0].patch("/config/threshold", json={"threshold": 0.31}).status_code == 200
        for each in several:
            each.post("/classify", content=jpeg, headers=RAW)
        before = set(children(process))
        killed = min(before, key=lambda each: each.pid)
        assert connections(killed, client) == 4
        end(killed)
        with httpx.Client(base_url=client.base_url, timeout=TIMEOUT) as new:
            assert counted(new, "images_total") == 8
            assert new.post("/classify", content=jpeg, headers=RAW).status_code == 200
            until(lambda: new.get("/health/ready").json()["processes"] == {"ready": 2, "count": 2})
            assert counted(new, "images_total") == 9
            assert new.get("/config/threshold").json()["threshold"] == 0.31
        for each in several:  # of half of them the connection is gone: they open another
            assert each.post("/classify", content=jpeg, headers=RAW).status_code == 200
        assert counted(several[0], "images_total") == 17
        replaced = next(each for each in children(process) if each not in before)
        assert connections(replaced, client) >= 3


def test_connections_move_to_a_process_that_took_anothers_place(serve: Serve) -> None:
    process, client = serve(processes="2")
    client.close()
    with clients(client, 4) as several:
        killed, left = sorted(children(process), key=lambda each: each.pid)
        end(killed)
        for each in several:  # all of them to the one that is left
            each.get("/health/live")

        def evened_out() -> bool:
            for each in several:
                each.get("/health/live")
            return connections(left, client) == 2

        until(evened_out)


def test_sigterm_finishes_what_every_process_accepted(serve: Serve, jpeg: bytes) -> None:
    process, client = serve(processes="2", drain_delay_seconds="0.1")
    opened = [half_sent(client, jpeg) for _ in range(8)]
    until(lambda: half_received(client) == 8)
    serving = children(process)
    process.send_signal(signal.SIGTERM)
    late = connection(client)
    assert late.recv(1) == b""  # nothing was asked over it: it is closed once the listener is
    late.close()
    with pytest.raises(ConnectionRefusedError):
        connection(client)
    assert process.poll() is None
    assert [finish(each, jpeg)[:13] for each in opened] == [b"HTTP/1.1 200 "] * 8
    assert process.wait(TIMEOUT) == 0
    assert all(map(is_gone, serving))
    for each in opened:
        each.close()


def test_sigterm_drains_first_and_a_second_one_stops_now(serve: Serve, jpeg: bytes) -> None:
    process, client = serve(processes="2", drain_delay_seconds="3600")
    with half_sent(client, jpeg) as accepted:
        until(lambda: half_received(client) == 1)
        process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/health/ready").status_code == 503)
        answer = client.post("/classify", content=jpeg, headers=RAW)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        process.send_signal(signal.SIGTERM)
        assert finish(accepted, jpeg).startswith(b"HTTP/1.1 200 ")
    assert process.wait(TIMEOUT) == -signal.SIGTERM


def test_sigint_to_all_of_them_stops_at_once(serve: Serve) -> None:
    process, _ = serve(processes="2", drain_delay_seconds="3600")
    for each in (*children(process), psutil.Process(process.pid)):  # as a terminal does
        each.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) == 128 + signal.SIGINT


def test_without_their_parent_the_processes_finish_and_end(serve: Serve, jpeg: bytes) -> None:
    process, client = serve(processes="2")
    with half_sent(client, jpeg) as accepted:
        until(lambda: half_received(client) == 1)
        serving = children(process)
        process.kill()
        process.wait()
        assert finish(accepted, jpeg).startswith(b"HTTP/1.1 200 ")
        until(lambda: all(map(is_gone, serving)))


def test_the_port_of_its_own_tells_of_all_processes(pair: Server, jpeg: bytes) -> None:
    with clients(pair[1], 2) as several:
        before = counted(several[0], "images_total")
        for each in several:
            each.post("/classify", content=jpeg, headers=RAW)
            listed = each.get("/metrics/targets").json()
            assert [target["labels"] for target in listed] == [{"replica": "one"}]
    (address,) = listed[0]["targets"]
    with httpx.Client(base_url=f"http://{address}", timeout=TIMEOUT) as own:
        assert counted(own, "images_total") == before + 2
        assert own.get("/stats").json()["images"] == before + 2
        assert own.get("/health/ready").status_code == 200
        assert own.post("/classify", content=jpeg, headers=RAW).status_code == 404


def test_with_redis_processes_share_their_config_with_other_replicas(serve: Serve, redis_server: RedisServer) -> None:
    _, ours = serve(processes="2", redis_url=redis_server.url)
    _, theirs = serve(redis_url=redis_server.url)
    assert theirs.patch("/config/threshold", json={"threshold": 0.27}).status_code == 200
    with clients(ours, 2) as several:
        until(lambda: all(each.get("/config/threshold").json()["threshold"] == 0.27 for each in several))


def start_in_vain(environment: dict[str, str], **settings: str) -> subprocess.CompletedProcess[str]:
    """A server that cannot start."""
    named = {f"LOWFIRST_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "service.cli", "serve", "--processes", "2"]
    return subprocess.run(command, env={**environment, **named}, capture_output=True, text=True, timeout=TIMEOUT)


def test_a_model_that_cannot_be_served_ends_the_start_with_one_line(
    environment: dict[str, str], two_versions: Path
) -> None:
    ended = start_in_vain(environment, model_store=str(two_versions), model="broken")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert all(" INFO " in line for line in ended.stderr.splitlines()[:-1])


def test_a_port_that_is_taken_is_named(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = start_in_vain(environment, port=str(port))
    assert ended.returncode == 1
    assert f"LOWFIRST_PORT is {port}" in ended.stderr
