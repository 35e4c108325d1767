"""How much work may be in flight. Bytes count once they are here, and images once they are whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.engine import tuning
from service.engine.arriving import Arriving, Body
from service.errors import Busy

# One in so many places, bytes and queued seconds is left to requests of few images.
RESERVE = 4


class Admission:
    """Counts of work in flight, used from the event loop's thread alone.

    A body that is whole is admitted before others that are not: these are given up where their bytes are needed.

    Requests of many images do not take all: unless nothing else is in flight, one leaves as much free as it takes, up
    to one part in ``RESERVE`` of each limit. A request of one image may take the last place.

    Args:
        max_images, max_bytes: limits over all requests.
        max_seconds: of queued work; what comes behind that much is rejected, unless few images are in flight.
        wait_seconds: how long a new image would have to wait.
        on_reject: told which limit was reached, and how many images are rejected.
    """

    def __init__(
        self,
        max_images: int,
        max_bytes: int,
        max_seconds: float = math.inf,
        wait_seconds: Callable[[], float] = lambda: 0.0,
        on_reject: Callable[[str, int], None] = lambda reason, images: None,
    ) -> None:
        self.max_images = max_images
        self.max_bytes = max_bytes
        self.max_seconds = max_seconds
        self.images = 0
        self._whole_bytes = 0
        self._arriving = Arriving()
        self._wait_seconds = wait_seconds
        self._on_reject = on_reject

    @property
    def bytes(self) -> int:
        """Of all bodies, whole or not."""
        return self._whole_bytes + self._arriving.bytes

    def check(self) -> None:
        """Raises Busy: there is no room now for even one image. Asked before a body is read."""
        self._check(1, 1)

    @contextmanager
    def admit(self, *, images: int, size: int = 0) -> Iterator[None]:
        """Hold room for ``images`` of whole bodies of ``size`` bytes for as long as the block runs.

        Raises:
            Busy: a limit is reached; nothing is held.
        """
        self._check(images, size)
        self._make_room(size)
        self.images += images
        self._whole_bytes += size
        try:
            yield
        finally:
            self.images -= images
            self._whole_bytes -= size

    @contextmanager
    def arriving(self, body: Body) -> Iterator[None]:
        """Hold room for what ``arrived`` tells of ``body`` until the block ends: it is whole, or given up."""
        try:
            yield
        finally:
            self._arriving.remove(body)

    def arrived(self, body: Body, size: int) -> None:
        """So many more bytes of ``body`` are here, and it is not whole yet.

        Raises:
            Busy: there is no room, and it is the one to be given up; or was already.
        """
        if body.refusal is None:
            self._arriving.add(body, size)
        if self.bytes > self.max_bytes and body.size < self.bytes:  # one body alone is bounded elsewhere
            self._make_room(0)
        if body.refusal is not None:
            raise body.refusal

    def _check(self, images: int, size: int) -> None:
        spare = min(images - 1, self.max_images // RESERVE) if self.images else 0
        spare_bytes = min(size, self.max_bytes // RESERVE) if spare else 0
        if self.images + images + spare > self.max_images:
            raise self._busy(images, "images", "in_flight", self.images, self.max_images, spare)
        held = self._whole_bytes  # none: one body alone is bounded elsewhere
        if held and held + size + spare_bytes > self.max_bytes:
            raise self._busy(images, "bytes", "in_flight", held, self.max_bytes, spare)
        if self.images < tuning.ALWAYS_ADMITTED:
            return
        seconds = self._wait_seconds()
        if seconds * (self.images + images - 1 + spare) / self.images > self.max_seconds:
            raise self._busy(images, "seconds", "queued", round(seconds, 3), self.max_seconds, spare)

    def _make_room(self, size: int) -> None:
        """Give up bodies that are not whole until there is room for so many bytes, or there are none."""
        while self.bytes + size > self.max_bytes and (body := self._arriving.first_to_give_up()) is not None:
            body.refusal = self._busy(1, "bytes", "in_flight", self.bytes, self.max_bytes)
            self._arriving.remove(body)
            body.stop()

    def _busy(self, images: int, what: str, where: str, value: float, bound: float, spare: int = 0) -> Busy:
        self._on_reject(what, images)
        left = f", and {images} images together leave room for {spare} more" if spare else ""
        return Busy(
            f"{value} {what} are {where.replace('_', ' ')}; the limit is {bound}{left}",
            retry_after_seconds=max(1, math.ceil(self._wait_seconds())),
            field=f"{what}_{where}",
            value=value,
            bound=bound,
        )
