"""The log of one process. No answer waits for it: a thread writes the rows; rows that it cannot write are lost and
counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import Busy, InvalidOption
from service.log import logger
from service.samples.files import Bounds, Files, Tally
from service.samples.folder import folder_at
from service.samples.formats import Format, check
from service.samples.known import KnownImages
from service.samples.record import Sample, Truth

# How long rows wait in memory for company.
FLUSH_SECONDS = 0.5

# Rows that wait at most, and their bytes, encoded images among them; later ones are lost.
MOST_ROWS = 10_000
MOST_BYTES = 64 * 1024 * 1024

# How long a process that ends waits for a store that does not answer.
CLOSE_SECONDS = 10.0

# How often a folder that cannot be written is told of.
TELL_SECONDS = 60.0

TRUTH_BYTES = 300  # about

Count = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What is logged, and where.

    Attributes:
        where: a folder's path, or a URL for fsspec.
        form: the format of samples; true labels are always JSON lines.
        share: of the images that are logged.
        image_bytes: encoded images up to this size are logged too; 0 logs none.
    """

    where: str
    form: Format
    bounds: Bounds
    share: float = 1.0
    image_bytes: int = 0


class SampleLog:
    """Writes samples and true labels to separate files. Call ``start`` before use and ``close`` after.

    Args:
        options: what is logged, and where.
        count: called with the number of samples that are ``written``, or lost: ``busy`` if too many waited; ``failed``
            if the folder could not be written, or a sample was larger than a file.

    Attributes:
        share: of the images that are logged. ``known``: images that feedback can refer to.

    Raises:
        InvalidOption: the folder cannot be written, or a package for it is missing.
    """

    def __init__(self, options: Options, count: Count = lambda result, rows: None) -> None:
        check(options.form, "LOWFIRST_SAMPLE_FORMAT", options.form)
        folder = folder_at(options.where, "LOWFIRST_SAMPLE_LOG")
        try:
            folder.prepare()
        except Exception as error:  # of a disk; a store's are its own
            why = getattr(error, "strerror", None) or error
            raise InvalidOption(
                "LOWFIRST_SAMPLE_LOG", options.where, f"a folder that can be written ({why})"
            ) from error
        self.share = options.share
        self.known = KnownImages()
        self._samples = Files(folder, "samples", options.form, options.bounds, self._complain)
        self._truths = Files(folder, "feedback", "jsonl", options.bounds, self._complain)
        self._image_bytes = options.image_bytes
        self._count = count
        self._lock = threading.Lock()
        self._waiting: list[tuple[Sample, bytes]] = []
        self._told: list[Truth] = []
        self._bytes = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sample-log", daemon=True)
        self._complained = -TELL_SECONDS

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread.start()

    def close(self) -> None:
        """Write the waiting rows, unless that takes too long."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def add(self, sample: Sample, body: bytes) -> None:
        """Log an image whose encoded form is ``body``. Never waits."""
        size = sample.size + len(body)
        with self._lock:
            has_room = len(self._waiting) < MOST_ROWS and self._bytes + size <= MOST_BYTES
            if has_room:
                self._waiting.append((sample, body))
                self._bytes += size
        if not has_room:
            self._count("busy", 1)

    def tell(self, truth: Truth) -> None:
        """Log the true label of an image. Never waits. Raises Busy if too many rows wait."""
        with self._lock:
            if len(self._told) >= MOST_ROWS:
                raise Busy(f"{MOST_ROWS} labels wait to be written; that is the limit", field="label", bound=MOST_ROWS)
            self._told.append(truth)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._closing.wait(FLUSH_SECONDS)
            with self._lock:
                waiting, self._waiting, self._bytes = self._waiting, [], 0
                told, self._told = self._told, []
            self._truths.add([(each.as_row(), TRUTH_BYTES) for each in told], is_last)
            samples = [sample.of_image(body, self._image_bytes) for sample, body in waiting]
            self._tell(self._samples.add([(each.as_row(), each.size) for each in samples], is_last))

    def _tell(self, done: Tally) -> None:
        if done.written:
            self._count("written", done.written)
        if done.lost:
            self._count("failed", done.lost)

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now > self._complained + TELL_SECONDS:
            self._complained = now
            logger.error("the sample log cannot be written, its rows are lost: %s", error)
