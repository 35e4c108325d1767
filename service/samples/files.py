"""Files of one kind in a folder: begun anew when they are full; the oldest of all go where there is no room."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal, NamedTuple

from service.samples.folder import Folder, LocalFolder
from service.samples.formats import SUFFIXES, Format, Row, encode, line

Kind = Literal["samples", "feedback"]
KINDS: tuple[Kind, ...] = ("samples", "feedback")

# How long rows wait for a file that is written whole: Parquet, or an object of a store.
SEGMENT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes of one file, and of all files of all processes in the folder."""

    file_bytes: int
    total_bytes: int


class Tally(NamedTuple):
    """What became of rows: so many are written, so many are lost."""

    written: int = 0
    lost: int = 0

    def plus(self, other: Tally) -> Tally:
        """Of both."""
        return Tally(self.written + other.written, self.lost + other.lost)


class Files:
    """This process's files of one kind. Used by one thread.

    JSON lines in a local folder grow as rows come. Parquet, and objects of a store, are written whole: once the rows
    fill one, or have waited for ``SEGMENT_SECONDS``. Rows that the folder refuses are lost.

    Args:
        on_refusal: told why the folder did not take what it was given.
    """

    def __init__(
        self, folder: Folder, kind: Kind, form: Format, bounds: Bounds, on_refusal: Callable[[Exception], None]
    ) -> None:
        self._folder = folder
        self._kind = kind
        self._form = form
        self._bounds = bounds
        self._on_refusal = on_refusal
        self._name, self._size = "", 0
        self._waiting: list[Row] = []
        self._waiting_bytes, self._waiting_since = 0, 0.0

    def add(self, rows: Sequence[tuple[Row, int]], is_last: bool = False) -> Tally:
        """Write rows, each given with its bytes, about; what would wait for more too if this is the ``last`` call."""
        if self._form == "jsonl" and isinstance(self._folder, LocalFolder):
            return self._append(self._folder, [line(row) for row, _ in rows])
        done = Tally()
        for row, size in rows:
            if self._waiting and self._waiting_bytes + size > self._bounds.file_bytes:
                done = done.plus(self._write())
            if not self._waiting:
                self._waiting_since = time.monotonic()
            self._waiting.append(row)
            self._waiting_bytes += size
        if self._waiting and (is_last or time.monotonic() > self._waiting_since + SEGMENT_SECONDS):
            done = done.plus(self._write())
        return done

    def _append(self, folder: LocalFolder, lines: Sequence[bytes]) -> Tally:
        """Each to the file it still fits in; a line that fits in none is lost."""
        most, done = self._bounds.file_bytes, Tally()
        fitting = [each for each in lines if len(each) <= most]
        begin = 0
        while begin < len(fitting):
            if not self._name or self._size + len(fitting[begin]) > most:
                self._name, self._size = self._new_name(), 0
            end, size = begin, self._size
            while end < len(fitting) and size + len(fitting[end]) <= most:
                size += len(fitting[end])
                end += 1
            data = b"".join(fitting[begin:end])
            attempt = self._attempt(end - begin, len(data), partial(folder.append, self._name, data))
            self._size += len(data) if attempt.written else 0
            done, begin = done.plus(attempt), end
        return done.plus(Tally(lost=len(lines) - len(fitting)))

    def _write(self) -> Tally:
        """A file of all that waits."""
        rows, self._waiting, self._waiting_bytes = self._waiting, [], 0
        data = encode(rows, self._form)
        if len(data) > self._bounds.file_bytes:  # a row alone that is too large
            return Tally(lost=len(rows))
        return self._attempt(len(rows), len(data), partial(self._folder.write, self._new_name(), data))

    def _attempt(self, rows: int, size: int, write: Callable[[], None]) -> Tally:
        try:
            self._make_room(size)
            write()
        except Exception as error:  # of a disk; a store's are its own
            self._on_refusal(error)
            return Tally(lost=rows)
        return Tally(written=rows)

    def _make_room(self, size: int) -> None:
        """Delete the oldest files of any process until so many bytes more are within the bound."""
        sizes = {name: each for name, each in self._folder.sizes().items() if is_of_log(name)}
        total = sum(sizes.values()) + size
        for name in sorted(sizes, key=lambda name: name.split("-", 1)[1]):
            if total <= self._bounds.total_bytes:
                return
            if name != self._name:
                self._folder.remove(name)
                total -= sizes[name]

    def _new_name(self) -> str:
        """It sorts by when the file was begun, whichever process did."""
        begun = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        return f"{self._kind}-{begun}-{socket.gethostname()}-{os.getpid()}{SUFFIXES[self._form]}"


def is_of_log(name: str) -> bool:
    """Whether a file is one of a log."""
    return name.split("-", 1)[0] in KINDS and name.endswith(tuple(SUFFIXES.values()))
