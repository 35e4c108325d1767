"""Slow images are decoded in a helper process, one at a time. If one takes too long, the process is ended.

A thread cannot be ended while a C library decodes, even if the library checks no limit. The helper process imports no
PyTorch, contains no keys, and has a limit on its memory. If a decoder crashes, only this process ends. The first slow
image starts it, and it lives as long as its parent.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from service import child_python
from service.errors import Busy, ImageTooLarge, InvalidImage, UnsupportedImage
from service.images.formats.reading import read
from service.images.pixels import Part, Pixels, pixels
from service.images.transforms import Preprocessing

# What decoding may take, by the clock: several times what the dearest photographs do on a busy machine.
DEADLINE_SECONDS = 5.0

# How long a thread waits for its turn; and for a process to start, on a machine that does much else.
TURN_SECONDS = 10.0
START_SECONDS = 60.0

# How long closing waits for a thread that has just lost its process.
CLOSE_SECONDS = 1.0

# Address space of the process: libraries, the image and ``MAX_MEMORY``, twice.
MAX_ADDRESS_SPACE = 2 << 30

REQUEST = struct.Struct("!QII")  # bytes of the image, resize, crop
ANSWER = struct.Struct("!cQ")  # what it is, and its bytes
SHAPE = struct.Struct("!II")  # height and width, before the pixels
READY, PIXELS, ERROR = b"r", b"p", b"e"
ERRORS = {each.__name__: each for each in (InvalidImage, UnsupportedImage, ImageTooLarge)}


class TookTooLong(ImageTooLarge):
    """The process was ended at its deadline."""


class Crashed(InvalidImage):
    """The process ended while it decoded."""


@dataclass(frozen=True, slots=True)
class _Process:
    popen: subprocess.Popen[bytes]
    socket: socket.socket

    def kill(self) -> None:
        """End the process. A call that waits for its answer sees the socket close."""
        self.popen.kill()
        self.popen.wait()


class Helper:
    """Decodes in another process. Any thread may call it; calls run one at a time.

    Args:
        deadline: seconds after which decoding is stopped.
        patience: seconds that a call waits for the calls before it.
    """

    def __init__(self, deadline: float = DEADLINE_SECONDS, patience: float = TURN_SECONDS) -> None:
        self._deadline = deadline
        self._patience = patience
        self._turn = threading.Lock()
        self._process: _Process | None = None
        self._is_ready = False
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._leave_to_parent)

    def pixels(self, data: bytes, preprocessing: Preprocessing) -> Pixels:
        """The source square of ``data``, as ``service.images.pixels.pixels`` gives it.

        Raises:
            Busy: earlier calls took longer than ``patience``.
            ImageTooLarge: it takes too much memory, or longer than the deadline (TookTooLong).
            InvalidImage: the decoder refused the image, or crashed (Crashed).
            OSError: the process cannot be started.
        """
        if not self._turn.acquire(timeout=self._patience):
            raise Busy("too many slow images are waiting to be decoded", field="image")
        try:
            return self._ask(data, preprocessing)
        finally:
            self._turn.release()

    @property
    def is_busy(self) -> bool:
        """Whether an image is being decoded."""
        return self._turn.locked()

    @property
    def process_id(self) -> int | None:
        """The id of the helper process; None if none runs."""
        process = self._process
        return None if process is None else process.popen.pid

    def close(self) -> None:
        """End the process even if it is decoding; a waiting call gets an error. The next image starts a new process."""
        process, self._process, self._is_ready = self._process, None, False
        if process is None:
            return
        process.kill()
        if self._turn.acquire(timeout=CLOSE_SECONDS):
            process.socket.close()
            self._turn.release()

    def _ask(self, data: bytes, preprocessing: Preprocessing) -> Pixels:
        process = self._ready_process()
        until = time.monotonic() + self._deadline
        try:
            process.socket.settimeout(self._deadline)
            process.socket.sendall(REQUEST.pack(len(data), preprocessing.resize, preprocessing.crop))
            process.socket.sendall(data)
            what, answer = _answer(process.socket, until)
        except TimeoutError as error:
            self._replace(process)
            raise TookTooLong(
                f"image takes longer than {self._deadline:g} s to decode", field="image", bound=self._deadline
            ) from error
        except OSError as error:
            self._replace(process)
            raise Crashed("image crashed the process that decoded it", field="image") from error
        if what == ERROR:
            named = json.loads(answer)
            raise ERRORS[named.pop("error")](**named)
        height, width = SHAPE.unpack_from(answer)
        return np.frombuffer(answer, np.uint8, offset=SHAPE.size).reshape(height, width, 3)

    def _ready_process(self) -> _Process:
        process = self._process = self._process or _start(self._deadline)
        if not self._is_ready:
            try:
                _answer(process.socket, time.monotonic() + START_SECONDS)
            except OSError:
                process.kill()
                process.socket.close()
                self._process = None
                raise
            self._is_ready = True
        return process

    def _replace(self, process: _Process) -> None:
        """Start the next process in the background, unless this object was closed."""
        is_wanted = self._process is process
        process.kill()
        process.socket.close()
        if is_wanted:
            self._process, self._is_ready = None, False
            with suppress(OSError):  # then the next image says so
                self._process = _start(self._deadline)

    def _leave_to_parent(self) -> None:
        """Forget the process in a forked child. It belongs to the parent, and the lock may be held by a thread of the
        parent.
        """
        process, self._process, self._is_ready = self._process, None, False
        self._turn = threading.Lock()
        if process is not None:
            process.socket.close()
            process.popen.returncode = 0  # not waited for here


HELPER = Helper()


def _start(deadline: float) -> _Process:
    here, there = socket.socketpair()
    with there:
        popen = child_python.start(
            f"from service.images.helper import serve; serve({there.fileno()}, {deadline})",
            environment={"OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            output=subprocess.DEVNULL,
            pass_fds=(there.fileno(),),
        )
    return _Process(popen, here)


def _answer(connection: socket.socket, until: float) -> tuple[bytes, bytearray]:
    what, size = ANSWER.unpack(_receive(connection, ANSWER.size, until))
    return what, _receive(connection, size, until)


def _receive(connection: socket.socket, size: int, until: float | None = None) -> bytearray:
    """Raises TimeoutError if data is missing at the deadline, and ConnectionError if the other side has ended."""
    received = bytearray(size)
    view = memoryview(received)
    while view:
        if until is not None:
            connection.settimeout(max(1e-3, until - time.monotonic()))
        count = connection.recv_into(view)
        if not count:
            raise ConnectionResetError("the other side is gone")
        view = view[count:]
    return received


# in the helper process


def serve(descriptor: int, deadline: float) -> None:
    """Decode images until the other side closes. A decode that takes ``deadline`` + 1 seconds is ended by SIGALRM, even
    without the parent.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(OSError, ValueError):  # not every system bounds it
        resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    with socket.socket(fileno=descriptor) as connection, suppress(ConnectionError):
        connection.sendall(ANSWER.pack(READY, 0))
        while True:
            size, resize, crop = REQUEST.unpack(_receive(connection, REQUEST.size))
            data = bytes(_receive(connection, size))
            signal.setitimer(signal.ITIMER_REAL, deadline + 1)
            what, answer = _decoded(data, Preprocessing(resize, crop))
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.sendall(ANSWER.pack(what, len(answer)))
            connection.sendall(answer)


def _decoded(data: bytes, preprocessing: Preprocessing) -> tuple[bytes, bytes]:
    try:
        picture = read(data)
        square = pixels(picture, Part.of(picture, preprocessing))
        return PIXELS, SHAPE.pack(*square.shape[:2]) + square.tobytes()
    except InvalidImage as error:
        found = error
    except MemoryError:
        found = ImageTooLarge("image takes too much memory to decode", field="image")
    named = {"message": found.message, "field": found.field, "value": found.value, "bound": found.bound}
    return ERROR, json.dumps({"error": type(found).__name__, **named}).encode()
