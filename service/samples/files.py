"""Files of one kind in a folder. A full file is followed by a new one; the oldest files are deleted to make room."""

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
    """Largest number of bytes of one file, and of all files of all processes in the folder."""

    file_bytes: int
    total_bytes: int


class Tally(NamedTuple):
    """The number of rows that were written, and that were lost."""

    written: int = 0
    lost: int = 0

    def plus(self, other: Tally) -> Tally:
        """The sum of both."""
        return Tally(self.written + other.written, self.lost + other.lost)


class Files:
    """This process's files of one kind. Used by one thread.

    JSON lines are appended to files in a local folder. Parquet files, and files at a URL, are written as a whole, when
    they are full or after ``SEGMENT_SECONDS``. Rows that cannot be written are lost.

    Args:
        on_refusal: called with the error if rows cannot be written.
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
        """Write rows, each given with its approximate size in bytes. If ``is_last``, write the waiting rows too."""
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
        """Append the lines, starting a new file when one is full. A line larger than a file is lost."""
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
        """Write all waiting rows as one file."""
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
        """Delete the oldest files, of any process, until ``size`` more bytes are within the bound."""
        sizes = {name: each for name, each in self._folder.sizes().items() if is_of_log(name)}
        total = sum(sizes.values()) + size
        for name in sorted(sizes, key=lambda name: name.split("-", 1)[1]):
            if total <= self._bounds.total_bytes:
                return
            if name != self._name:
                self._folder.remove(name)
                total -= sizes[name]

    def _new_name(self) -> str:
        """A file name. Names sort by the time at which the files were started, over all processes."""
        begun = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        return f"{self._kind}-{begun}-{socket.gethostname()}-{os.getpid()}{SUFFIXES[self._form]}"


def is_of_log(name: str) -> bool:
    """Whether the file with this name belongs to a log."""
    return name.split("-", 1)[0] in KINDS and name.endswith(tuple(SUFFIXES.values()))
