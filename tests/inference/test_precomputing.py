"""What a model needs before it serves is made in another process, once, and whatever becomes of that is told."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.errors import BrokenModel, Draining, NotFound, PreparationEnded
from service.inference import precomputing
from service.inference.precomputing import Precomputed, Precomputing, Served
from service.inference.predictor import Predictor

pytestmark = pytest.mark.anyio

SERVED = Served("openvino", "float32", 1, 2)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that were started."""
    found: list[subprocess.Popen[bytes]] = []
    start = precomputing._start

    def noted(order: dict[str, object], said: Path) -> subprocess.Popen[bytes]:
        found.append(start(order, said))
        return found[-1]

    monkeypatch.setattr(precomputing, "_start", noted)
    return found


async def test_processes_of_a_server_share_what_one_has_made_until_it_is_of_other_models(
    two_versions: Path, tmp_path: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precomputing, "KEPT", 1)
    folder, servers = two_versions / "tiny" / "1", [Precomputing(SERVED, tmp_path) for _ in range(2)]
    both = await asyncio.gather(*(server.of(folder, is_timed=False) for server in servers))
    assert len(started) == 1
    assert both[0] == both[1]
    table = both[0].table
    assert table is not None
    assert [sorted(times) for times in (*table.stages, table.single)] == [[1, 2]] * 3
    here = Predictor.load(folder, "cpu", "float32", "openvino")
    there = Predictor.load(folder, "cpu", "float32", "openvino", converted=both[0].converted)
    images = here.noise(2)
    for ours, theirs in zip(here.answers(images), there.answers(images), strict=True):
        torch.testing.assert_close(theirs, ours)
    other = await servers[0].of(two_versions / "other" / "1", is_timed=True)
    assert len(started) == 2
    assert other.table is None
    assert [each for each in tmp_path.iterdir() if each.is_dir()] == [other.converted]


@pytest.mark.parametrize(("reference", "error"), [("broken/1", BrokenModel), ("tiny/9", NotFound)])
async def test_what_is_broken_is_told_without_a_process(
    two_versions: Path, started: list[subprocess.Popen[bytes]], reference: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await Precomputing(SERVED).of(two_versions / reference, is_timed=True)
    assert not started


async def test_of_what_may_not_be_loaded_nothing_is(
    two_versions: Path, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    def refuse(folder: Path) -> None:
        raise BrokenModel(f"{folder.name} is not signed")

    with pytest.raises(BrokenModel, match="1 is not signed"):
        await Precomputing(SERVED, tmp_path, refuse).of(two_versions / "tiny" / "1", is_timed=True)
    assert not started


async def test_modules_of_the_folder_that_the_server_is_started_in_are_not_taken(
    two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "__init__.py").write_text("raise SystemExit('another service')")
    monkeypatch.chdir(tmp_path)
    done = await Precomputing(SERVED, tmp_path).of(two_versions / "tiny" / "1", is_timed=True)
    assert done.converted is not None


async def test_what_the_process_finds_broken_is_told_as_it_would_be_here(two_versions: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two_versions / "tiny" / "1", tmp_path / "tiny" / "1")
    spec = (folder / "model.json").read_text()
    (folder / "model.json").write_text(spec.replace("mobilenet_v1", "mobilenet_v9"))
    with pytest.raises(BrokenModel) as here:
        Predictor.load(folder, "cpu", "float32", "openvino")
    with pytest.raises(BrokenModel) as there:
        await Precomputing(SERVED, tmp_path).of(folder, is_timed=True)
    assert (there.value.message, there.value.value) == (here.value.message, here.value.value)


async def test_a_killed_process_is_named_and_leaves_nothing(
    two_versions: Path, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    server, folder = Precomputing(SERVED, tmp_path), two_versions / "tiny" / "1"
    first = asyncio.create_task(server.of(folder, is_timed=True))
    await _until(lambda: bool(started))
    os.kill(started[0].pid, signal.SIGKILL)
    with pytest.raises(PreparationEnded, match="ended by SIGKILL: try again"):
        await first
    assert [each.name for each in tmp_path.iterdir()] == ["lock"]


async def test_a_server_that_stops_ends_what_runs_and_starts_nothing(
    two_versions: Path, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    server, folder = Precomputing(SERVED, tmp_path), two_versions / "tiny" / "1"
    running = asyncio.create_task(server.of(folder, is_timed=True))
    await _until(lambda: bool(started))
    server.stop()
    for each in (running, server.of(folder, is_timed=True)):
        with pytest.raises(Draining, match="stopping"):
            await each
    assert [process.returncode for process in started] == [-signal.SIGKILL]


async def test_the_process_ends_with_its_server(two_versions: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    asked = {"folder": str(two_versions / "tiny" / "1"), "made": str(tmp_path / "made"), "is_timed": False}
    process = precomputing._start({**asked, **dataclasses.asdict(SERVED)}, tmp_path / "said")
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.to_thread(process.wait, 60) == 1
    assert not (tmp_path / "said").read_bytes()


async def test_where_no_file_can_be_kept_nothing_is_precomputed_and_the_log_says_so(
    two_versions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Precomputing(SERVED, tmp_path / "gone")
    assert await server.of(two_versions / "tiny" / "1", is_timed=True) == Precomputed()
    assert "tiny/1 is prepared beside the requests" in caplog.text


async def test_runtimes_that_convert_nothing_need_nothing(two_versions: Path) -> None:
    assert await Precomputing(None).of(two_versions / "tiny" / "1", is_timed=False) == Precomputed()


async def _until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not reached():
            await asyncio.sleep(0.001)
