"""Models exchanged in a server of several processes: all change together, and whatever becomes of a switch is told."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from tests.e2e.test_processes import children, clients, connections, end, is_gone
from tests.e2e.under_load import TIMEOUT, until

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]


def patched(client: httpx.Client, model: str) -> httpx.Response:
    return client.patch("/config/model", json={"model": model}, timeout=3 * TIMEOUT)


def served(client: httpx.Client) -> str:
    model = client.get("/stats").json()["model"]
    return f"{model['name']}/{model['version']}"


def preparing(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that prepare a model for others."""
    return [each for child in children(process) for each in child.children() if "precomputing" in " ".join(_line(each))]


def test_switches_at_once_in_two_processes_leave_one_model_in_both_once_they_are_answered(
    serve: Serve, two_versions: Path
) -> None:
    _, client = serve(processes="2", model_store=str(two_versions), model="tiny/1")
    with clients(client, 4) as several, ThreadPoolExecutor() as pool:
        for models in (("tiny/2", "other/1"), ("tiny/1", "tiny/2"), ("other/1", "tiny/2")):
            both = list(pool.map(patched, several, models))
            assert [answer.status_code for answer in both] == [200, 200]
            assert len({served(each) for each in several}) == 1


def test_a_switch_survives_the_death_of_another_process_and_tells_of_its_own_end(
    serve: Serve, two_versions: Path
) -> None:
    process, client = serve(processes="2", model_store=str(two_versions), model="tiny/1", runtime="openvino")
    with ThreadPoolExecutor() as pool:

        def begun(model: str) -> tuple[Future[httpx.Response], psutil.Process]:
            """A switch, and the process that prepares its model."""
            answer = pool.submit(patched, client, model)
            until(lambda: answer.done() or len(preparing(process)) == 1)
            assert not answer.done(), answer.result().text
            return answer, preparing(process)[0]

        answer, preparer = begun("other")
        preparer.kill()
        refused = answer.result()
        assert refused.status_code in (409, 503)  # by which of the two processes it was made
        assert "ended by SIGKILL" in refused.json()["error"]["message"]
        assert served(client) == "tiny/1"

        answer, _ = begun("other")
        asked = next(each for each in children(process) if connections(each, client))
        end(next(each for each in children(process) if each != asked))
        assert answer.result().status_code == 200
        until(lambda: client.get("/health/ready").json()["processes"] == {"ready": 2, "count": 2})
        with clients(client, 4) as several:
            assert {served(each) for each in several} == {"other/1"}

        answer, preparer = begun("tiny/2")
        process.send_signal(signal.SIGTERM)
        assert answer.result().status_code == 503
        assert "the server is stopping" in answer.result().json()["error"]["message"]
    assert process.wait(TIMEOUT) == 0
    until(lambda: is_gone(preparer))


def _line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
