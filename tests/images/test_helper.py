"""Dear images are decoded in a process that can be ended: hangs, crashes, forks and stops, with real processes."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import service.images.decode as decoding
from service.errors import Busy, ImageTooLarge, InvalidImage
from service.images.decode import decode, is_dear
from service.images.helper import Helper
from tests.images.encoding import PREPROCESSING, SMALL, encoded, picture, png

JPEG = encoded(picture(), "JPEG")


def slow_bmp() -> bytes:
    """64 million pixels in 32 KB, which Pillow fills byte by byte: seconds."""
    palette = bytes(range(256)) * 4
    rows = b"\x01\x07\0\0" * 8000
    head = struct.pack("<IiiHHIIiiII", 40, 8000, 8000, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<III", 0, 0, 54 + 1024) + head + palette + rows


@pytest.fixture
def helper() -> Iterator[Helper]:
    helper = Helper(deadline=60)
    yield helper
    helper.close()


@pytest.fixture
def hasty() -> Iterator[Helper]:
    """One that waits a second, and has its process."""
    helper = Helper(deadline=1)
    while True:  # on a machine that does much else
        try:
            helper.pixels(JPEG, PREPROCESSING)
            break
        except ImageTooLarge:
            continue
    yield helper
    helper.close()


def pid(helper: Helper) -> int:
    assert helper.process_id is not None
    return helper.process_id


def wait_until_gone(process: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if ") Z " in Path(f"/proc/{process}/stat").read_text():
                return
        except OSError:
            return
        time.sleep(0.01)
    raise AssertionError(f"process {process} is still there")


class TestPixels:
    @pytest.mark.parametrize("kind", SMALL)
    def test_are_those_that_the_calling_thread_decodes(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        here = decode(SMALL[kind], PREPROCESSING)
        monkeypatch.setattr(decoding, "DEAR_SECONDS", 0)
        assert is_dear(SMALL[kind], PREPROCESSING)
        assert torch.equal(decode(SMALL[kind], PREPROCESSING), here)

    def test_come_to_every_thread(self, helper: Helper) -> None:
        files = [encoded(picture(seed=seed), "JPEG") for seed in range(8)]
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(lambda data: helper.pixels(data, PREPROCESSING), files))
        alone = [helper.pixels(data, PREPROCESSING) for data in files]
        assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))

    @pytest.mark.parametrize(
        "data",
        [
            encoded(Image.new("RGB", (4000, 3000)), "JPEG", progressive=True, subsampling=0),
            encoded(Image.new("RGB", (6000, 4000)), "JPEG", progressive=True),
            png(5120, 2880, 8, 6, bytes(range(200, 240)) * (5120 * 2880 * 4 // 40)),
            encoded(Image.new("RGB", (4000, 3000)), "WEBP", lossless=True, method=0),
        ],
        ids=["12 MP progressive 4:4:4", "24 MP progressive 4:2:0", "5K RGBA PNG", "12 MP lossless WebP"],
    )
    def test_of_ordinary_large_photographs_are_decoded(self, data: bytes) -> None:
        assert is_dear(data, PREPROCESSING)
        assert decode(data, PREPROCESSING).shape == (3, 192, 192)

    def test_that_are_not_there_are_the_same_error(self, helper: Helper) -> None:
        data = JPEG[: len(JPEG) // 2] + b"\xff\xd9"
        with pytest.raises(InvalidImage) as here:
            decode(data, PREPROCESSING)
        with pytest.raises(InvalidImage) as there:
            helper.pixels(data, PREPROCESSING)
        assert vars(there.value) == vars(here.value)


class TestTurn:
    def test_that_does_not_come_is_busy(self) -> None:
        helper = Helper(deadline=60, patience=0.05)
        helper.pixels(JPEG, PREPROCESSING)
        os.kill(pid(helper), signal.SIGSTOP)
        with ThreadPoolExecutor(1) as thread:
            first = thread.submit(helper.pixels, JPEG, PREPROCESSING)
            while not helper.is_busy:
                time.sleep(0.001)
            with pytest.raises(Busy) as raised:
                helper.pixels(JPEG, PREPROCESSING)
            assert raised.value.status == 429
            os.kill(pid(helper), signal.SIGCONT)
            assert first.result().shape[2] == 3
        helper.close()


class TestEnd:
    def test_of_a_decode_that_hangs_is_an_answer_and_the_next_image_works(self, hasty: Helper) -> None:
        hung = pid(hasty)
        os.kill(hung, signal.SIGSTOP)
        with pytest.raises(ImageTooLarge, match="longer than 1 s") as raised:
            hasty.pixels(JPEG, PREPROCESSING)
        assert (raised.value.status, raised.value.bound) == (413, 1)
        wait_until_gone(hung)
        assert hasty.pixels(JPEG, PREPROCESSING).shape[2] == 3
        assert pid(hasty) != hung

    def test_of_a_decode_that_is_slow_is_an_answer_and_the_next_image_works(self, hasty: Helper) -> None:
        slow = pid(hasty)
        with pytest.raises(ImageTooLarge, match="longer than 1 s"):
            hasty.pixels(slow_bmp(), PREPROCESSING)
        wait_until_gone(slow)
        assert hasty.pixels(JPEG, PREPROCESSING).shape[2] == 3

    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSEGV])
    def test_of_the_process_by_a_crash_is_an_answer_and_the_next_image_works(self, helper: Helper, end: int) -> None:
        helper.pixels(JPEG, PREPROCESSING)
        crashed = pid(helper)
        os.kill(crashed, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(helper.pixels, JPEG, PREPROCESSING)
            os.kill(crashed, end)
            os.kill(crashed, signal.SIGCONT)
            with pytest.raises(InvalidImage, match="crashed the process"):
                waiting.result()
        assert helper.pixels(JPEG, PREPROCESSING).shape[2] == 3

    def test_by_close_frees_whoever_waits(self, helper: Helper) -> None:
        helper.pixels(JPEG, PREPROCESSING)
        stopped = pid(helper)
        os.kill(stopped, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(helper.pixels, JPEG, PREPROCESSING)
            helper.close()
            with pytest.raises(InvalidImage):
                waiting.result()
        wait_until_gone(stopped)


HEAD = """
import os, sys, threading, time
from contextlib import suppress
from pathlib import Path
from service.images.helper import Helper
from service.images.transforms import Preprocessing
jpeg, slow = (Path(sys.argv[1], name).read_bytes() for name in ("jpeg", "slow"))
preprocessing = Preprocessing(resize=225, crop=192)
helper = Helper(deadline=float(sys.argv[2]))
first = helper.pixels(jpeg, preprocessing)
"""


def start(script: str, folder: Path, deadline: float = 60) -> subprocess.Popen[str]:
    """A process of its own that has a helper and asked it once."""
    (folder / "jpeg").write_bytes(JPEG)
    (folder / "slow").write_bytes(slow_bmp())
    command = [sys.executable, "-c", HEAD + script, str(folder), str(deadline)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestProcess:
    def test_imports_no_pytorch(self) -> None:
        script = "import sys, service.images.helper; print('torch' in sys.modules)"
        assert subprocess.check_output([sys.executable, "-c", script], text=True) == "False\n"

    def test_knows_no_key(self, helper: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOWFIRST_API_KEY", "secret")
        helper.pixels(JPEG, PREPROCESSING)
        assert b"secret" not in Path(f"/proc/{pid(helper)}/environ").read_bytes()

    def test_does_not_hold_up_the_exit_of_the_one_that_asks(self, tmp_path: Path) -> None:
        script = """
def decode():
    with suppress(Exception):
        helper.pixels(slow, preprocessing)
        print("decoded", flush=True)
threading.Thread(target=decode, daemon=True).start()
while not helper.is_busy:
    time.sleep(0.001)
print(helper.process_id, flush=True)
"""
        with start(script, tmp_path) as asker:
            said, _ = asker.communicate(timeout=100)
        assert asker.returncode == 0
        assert "decoded" not in said
        wait_until_gone(int(said))

    def test_ends_when_the_one_that_asked_is_killed(self, tmp_path: Path) -> None:
        script = "print(helper.process_id, flush=True); helper.pixels(slow, preprocessing)"
        with start(script, tmp_path, deadline=2) as asker:
            assert asker.stdout is not None
            process = int(asker.stdout.readline())
            asker.kill()
        wait_until_gone(process)

    def test_is_not_shared_with_a_fork(self, tmp_path: Path) -> None:
        script = """
before = helper.process_id
child = os.fork()
same = (helper.pixels(jpeg, preprocessing) == first).all()
print("child" if child == 0 else "parent", same, (helper.process_id == before) == (child != 0), flush=True)
if child != 0:
    os.waitpid(child, 0)
"""
        with start(script, tmp_path) as asker:
            said, _ = asker.communicate(timeout=100)
        assert sorted(said.splitlines()) == ["child True True", "parent True True"]
