"""The sample log of real servers: written by several processes, read by the commands, lost where a disk is full."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from service.samples.reading import SavedLog
from tests.e2e.under_load import RAW, TIMEOUT, until

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]

IMAGES = 48


def stop(process: subprocess.Popen[str]) -> None:
    """As an operator does."""
    process.send_signal(signal.SIGTERM)
    process.wait(TIMEOUT)


def command(environment: dict[str, str], *arguments: str) -> str:
    """What ``lowfirst`` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env={**environment, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def counted(client: httpx.Client, name: str, label: str) -> float:
    """One counter's value."""
    found = re.search(rf'^lowfirst_{name}_total{{\w+="{label}"}} (\S+)$', client.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def test_two_processes_log_and_take_feedback_of_each_other_and_accuracy_over_time_is_read_of_it(
    serve: Serve, environment: dict[str, str], make_jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    process, client = serve(processes="2", sample_log=str(tmp_path), sample_format="parquet")
    right = 0
    for index in range(IMAGES):
        with httpx.Client(base_url=client.base_url, timeout=TIMEOUT) as other:  # of the other process: it has fewer
            asked = other if index % 2 else client
            answer = asked.post("/classify", content=make_jpeg(index), headers=RAW).json()
        told = client.post("/feedback", json={"request_id": answer["request_id"], "label": index % 4})
        right += told.json()["right"]
    unknown = client.post("/feedback", json={"request_id": "nobody", "label": 0})
    assert unknown.status_code == 404
    assert (counted(client, "feedback", "tiny/1"), counted(client, "feedback_right", "tiny/1")) == (IMAGES, right)
    told = client.get("/stats").json()["feedback"]
    assert (told["images"], told["right"]) == (IMAGES, right)
    assert sum(each["images"] for each in told["by_exit"].values()) == IMAGES
    stop(process)
    assert len(list(tmp_path.glob("samples-*.parquet"))) == 2
    assert len(SavedLog(str(tmp_path)).truths()) == IMAGES

    history = json.loads(command(environment, "evaluate", "tiny", "--from-log", str(tmp_path), "--json"))
    assert (history["total"]["images"], history["total"]["labelled"]) == (IMAGES, IMAGES)
    assert history["total"]["right"] == right
    assert history["total"]["drawn"] == IMAGES


def test_a_model_is_calibrated_by_a_log(
    serve: Serve, environment: dict[str, str], make_jpeg: Callable[[int], bytes], tiny_store: Path, tmp_path: Path
) -> None:
    process, client = serve(sample_log=str(tmp_path / "log"), sample_image_bytes="100000")
    for index in range(IMAGES):
        assert client.post("/classify", content=make_jpeg(index), headers=RAW).status_code == 200
    stop(process)
    samples = list(SavedLog(str(tmp_path / "log")).samples())
    assert {sample.image for sample in samples} == {make_jpeg(index) for index in range(IMAGES)}
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    told = command(
        {**environment, "LOWFIRST_MODEL_STORE": str(store)}, "calibrate", "tiny", "--from-log", str(tmp_path / "log")
    )
    assert "eager float32" in told
    (table,) = json.loads((store / "tiny" / "1" / "model.json").read_text())["calibration"]
    assert 10 <= table["n"] <= IMAGES - 10
    assert table["is_labelled"] is False


def test_a_disk_that_takes_no_more_loses_lines_and_no_answer(serve: Serve, jpeg: bytes, tmp_path: Path) -> None:
    process, client = serve(sample_log=str(tmp_path))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2500, 2500))
    for _ in range(20):
        assert client.post("/classify", content=jpeg, headers=RAW).status_code == 200
    until(lambda: counted(client, "samples", "written") + counted(client, "samples", "failed") == 20)
    lost = counted(client, "samples", "failed")
    assert lost > 0
    stop(process)
    saved = SavedLog(str(tmp_path))
    assert (len(list(saved.samples())), saved.broken) == (20 - lost, 0)


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for processes in ("1", "2"):
        settings = {"LOWFIRST_SAMPLE_LOG": str(tmp_path / "file" / "log"), "LOWFIRST_PROCESSES": processes}
        settings |= {"LOWFIRST_LOG_LEVEL": "error"}
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", "serve"],
            env={**environment, **settings},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 1
        assert re.fullmatch(
            r"error: LOWFIRST_SAMPLE_LOG is '.*'; it must be a folder that can be written \(Not a directory\)\n",
            done.stderr,
        )
