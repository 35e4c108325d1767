"""Reads a sample log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from service.errors import DataError, InvalidOption
from service.log import logger
from service.samples.files import is_of_log
from service.samples.folder import Folder, folder_at
from service.samples.formats import Row, decode
from service.samples.record import Sample, Truth

FIELD = "from_log"


@dataclass(slots=True)
class SavedLog:
    """The files of a log.

    Attributes:
        where: the folder of the log.
        broken: number of rows and files that could not be read so far.

    Raises:
        DataError: the folder does not exist, or contains no log.
        InvalidOption: a package for the URL or for Parquet is missing.
    """

    where: str
    broken: int = 0
    _folder: Folder = field(init=False)
    _names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._folder = folder_at(self.where, FIELD)
        try:
            names = self._folder.sizes()
        except Exception as error:  # of a disk; a store's are its own
            raise DataError(f"{self.where} cannot be read: {error}", field=FIELD, value=self.where) from error
        self._names = sorted((name for name in names if is_of_log(name)), key=lambda name: name.split("-", 1)[1])
        if not any(name.startswith("samples-") for name in self._names):
            raise DataError(
                f"{self.where} holds no samples-*.jsonl or samples-*.parquet: LOWFIRST_SAMPLE_LOG writes them",
                field=FIELD,
                value=self.where,
            )

    def samples(self) -> Iterator[Sample]:
        """Every image, in the order of the files."""
        for row in self._rows("samples-"):
            try:
                sample = Sample.of_row(row)
            except (KeyError, TypeError, ValueError):
                self.broken += 1
                continue
            yield sample

    def truths(self) -> dict[tuple[str, int, float], Truth]:
        """The latest true label of each image, by request id, index and time of the image."""
        found: dict[tuple[str, int, float], Truth] = {}
        for row in self._rows("feedback-"):
            try:
                truth = Truth.of_row(row)
                key = truth.request_id, truth.index, truth.of
                if key not in found or truth.time >= found[key].time:
                    found[key] = truth
            except (KeyError, TypeError):
                self.broken += 1
        return found

    def tell_broken(self) -> None:
        """Log how many rows and files could not be read."""
        if self.broken:
            logger.warning("%d rows of %s could not be read, and are left out", self.broken, self.where)

    def _rows(self, kind: str) -> Iterator[Row]:
        for name in self._names:
            if not name.startswith(kind):
                continue
            try:
                for row in decode(self._folder.read(name), name):
                    if row is None:
                        self.broken += 1
                    else:
                        yield row
            except InvalidOption:
                raise
            except FileNotFoundError:  # deleted meanwhile, to make room
                continue
            except Exception:  # a file that is none
                self.broken += 1
