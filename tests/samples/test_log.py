"""The sample log as files: read back in each form, bounded, and lost without harm where it cannot be written."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from service.errors import Busy, DataError, InvalidOption
from service.samples import files, log
from service.samples.files import Bounds
from service.samples.formats import Format
from service.samples.log import Options, SampleLog
from service.samples.reading import SavedLog
from service.samples.record import Sample, Truth

FORMS: tuple[Format, ...] = ("jsonl", "parquet")
LARGE = Bounds(1 << 20, 1 << 22)


def sample(index: int = 0, request_id: str = "r") -> Sample:
    """Of an image of a model of two stages and three classes."""
    random = np.random.default_rng(index)
    outputs = tuple(random.random(3).astype(np.float32) for _ in range(2))
    return Sample(
        time=1e9 + index + 0.123456789, request_id=request_id, index=index, model="bees/1", weights_sha256="ab",
        runtime="eager", precision="float32", temperatures=(1.5, 0.7), outputs=outputs, answer=1, label="böe",
        exit="low", stage=0, reason="confident", confidence=0.75, threshold=0.7, drawn=True, ms=1.25,
    )  # fmt: skip


def write(where: str, rows: int, form: Format = "jsonl", bounds: Bounds = LARGE, image: bytes = b"") -> Counter[str]:
    """Log so many images; gives the counts of what became of them."""
    counts: Counter[str] = Counter()
    opened = SampleLog(Options(where, form, bounds, image_bytes=8), lambda result, n: counts.update({result: n}))
    opened.start()
    for index in range(rows):
        opened.add(sample(index), image)
    opened.tell(Truth(1e9, "r", 0, sample(0).time, "bees/1", 2, "bée"))
    opened.close()
    return counts


@pytest.fixture(params=["folder", "memory"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of this machine, and one of a store that fsspec knows."""
    return str(tmp_path / "log") if request.param == "folder" else f"memory://{tmp_path}"


@pytest.mark.parametrize("form", FORMS)
def test_images_and_truths_are_read_as_they_were_logged(where: str, form: Format) -> None:
    assert write(where, 3, form, image=b"a JPEG") == {"written": 3}
    saved = SavedLog(where)
    found = list(saved.samples())
    expected = [sample(index).of_image(b"a JPEG", 8) for index in range(3)]
    for one, other in zip(found, expected, strict=True):
        assert {**one.as_row(), "outputs": None} == {**other.as_row(), "outputs": None}
        np.testing.assert_array_equal(one.outputs, other.outputs)
    assert found[0].image == b"a JPEG"
    assert found[0].image_sha256 == hashlib.sha256(b"a JPEG").hexdigest()
    assert saved.truths() == {("r", 0, sample(0).time): Truth(1e9, "r", 0, sample(0).time, "bees/1", 2, "bée")}
    assert saved.broken == 0


def test_a_larger_image_is_not_kept(tmp_path: Path) -> None:
    write(str(tmp_path), 1, image=b"a larger JPEG")
    (found,) = SavedLog(str(tmp_path)).samples()
    assert (found.image, found.image_bytes) == (None, 13)


@pytest.mark.parametrize("form", FORMS)
def test_files_and_all_of_them_are_bounded_and_the_newest_stay(where: str, form: Format) -> None:
    bounds = Bounds(20_000, 50_000)
    for _ in range(3):
        write(where, 400, form, bounds)
    sizes = SavedLog(where)._folder.sizes()
    assert len(sizes) > 1
    assert max(sizes.values()) <= bounds.file_bytes
    assert sum(sizes.values()) <= bounds.total_bytes
    assert max(found.index for found in SavedLog(where).samples()) == 399


def test_a_row_larger_than_a_file_is_lost_and_counted(tmp_path: Path) -> None:
    assert write(str(tmp_path), 2, bounds=Bounds(300, 600)) == {"failed": 2}


def test_what_comes_faster_than_it_is_written_is_lost_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MOST_ROWS", 5)
    counts: Counter[str] = Counter()
    opened = SampleLog(Options(str(tmp_path), "jsonl", LARGE), lambda result, n: counts.update({result: n}))
    for index in range(7):  # nobody writes yet
        opened.add(sample(index), b"")
    for _ in range(5):
        opened.tell(Truth(1e9, "r", 0, 0.0, "bees/1", 2, "bee"))
    with pytest.raises(Busy, match="5 labels wait to be written"):
        opened.tell(Truth(1e9, "r", 0, 0.0, "bees/1", 2, "bee"))
    opened.start()
    opened.close()
    assert counts == {"busy": 2, "written": 5}


def test_bytes_that_wait_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MOST_BYTES", 10_000)
    counts: Counter[str] = Counter()
    opened = SampleLog(Options(str(tmp_path), "jsonl", LARGE), lambda result, n: counts.update({result: n}))
    for index in range(4):
        opened.add(sample(index), bytes(4000))
    assert counts == {"busy": 2}


def test_lines_cut_by_a_power_failure_are_left_out_and_counted(tmp_path: Path) -> None:
    write(str(tmp_path), 3)
    (path,) = tmp_path.glob("samples-*")
    path.write_bytes(path.read_bytes()[:-20] + b"\n" + b'{"time": 1}\n[]\n\xff\xfe\n')
    saved = SavedLog(str(tmp_path))
    assert [found.index for found in saved.samples()] == [0, 1]
    assert saved.broken == 4


def test_rows_of_parquet_wait_no_longer_than_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SEGMENT_SECONDS", 0.0)
    opened = SampleLog(Options(str(tmp_path), "parquet", LARGE))
    opened.start()
    opened.add(sample(), b"")
    until = time.monotonic() + 30
    while not list(tmp_path.glob("samples-*.parquet")):
        assert time.monotonic() < until
        time.sleep(0.01)
    opened.close()


def test_a_line_that_finds_the_disk_full_leaves_nothing_of_it_behind(tmp_path: Path) -> None:
    """A file of a process that may write no larger ones: the kernel takes a part of the line, then refuses."""
    script = (
        "import sys, resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
        "from tests.samples.test_log import write; print(dict(write(sys.argv[1], 100)))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=100)
    counts = json.loads(done.stdout.replace("'", '"'))
    assert counts["failed"] == 100, done.stderr
    (path,) = tmp_path.glob("samples-*")
    assert path.stat().st_size == 0
    assert SavedLog(str(tmp_path)).truths()


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_that_cannot_be_written_is_refused(form: Format, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/log")):
        with pytest.raises(InvalidOption, match=r"LOWFIRST_SAMPLE_LOG is '.*'; it must be a folder that can be wri"):
            SampleLog(Options(str(bad), form, LARGE))


@pytest.mark.parametrize("bad", ["nowhere://logs", "s3://bucket/logs"])
def test_a_url_that_cannot_be_reached_is_refused(bad: str) -> None:
    with pytest.raises(InvalidOption, match="LOWFIRST_SAMPLE_LOG is "):
        SampleLog(Options(bad, "jsonl", LARGE))


def test_a_folder_without_a_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no samples-\*\.jsonl"):
        SavedLog(str(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        SavedLog(str(tmp_path / "missing"))
