"""Limits on work in flight. Bytes count once they arrive, and images once they are complete."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.engine import tuning
from service.engine.arriving import Arriving, Body
from service.errors import Busy

# One part in this many of places, bytes and queued seconds is left to requests with few images.
RESERVE = 4


class Admission:
    """Counts of work in flight. Used only in the event loop's thread.

    Complete bodies take precedence: incomplete ones are rejected if their bytes are needed.

    Requests with many images leave room for others. Unless nothing else is in flight, such a request must leave as much
    room as it takes, up to one part in ``RESERVE`` of each limit. A request with one image may take the last place.

    Args:
        max_images, max_bytes: limits over all requests.
        max_seconds: of queued work; beyond it new work is rejected, unless few images are in flight.
        wait_seconds: how long a new image would have to wait.
        on_reject: called with the limit that was reached, and the number of rejected images.
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
        """Bytes of all bodies, complete or not."""
        return self._whole_bytes + self._arriving.bytes

    def check(self) -> None:
        """Raise Busy if there is no room for even one image. Called before a body is read."""
        self._check(1, 1)

    @contextmanager
    def admit(self, *, images: int, size: int = 0) -> Iterator[None]:
        """Hold room for ``images`` in complete bodies of ``size`` bytes while the block runs.

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
        """Hold room for the bytes of ``body`` reported to ``arrived``, until the block ends."""
        try:
            yield
        finally:
            self._arriving.remove(body)

    def arrived(self, body: Body, size: int) -> None:
        """Count new bytes of the incomplete ``body``.

        Raises:
            Busy: there is no room, and this body is rejected, now or earlier.
        """
        if body.refusal is None:
            self._arriving.add(body, size)
        if self.bytes > self.max_bytes and body.size < self.bytes:  # a single body has its own limit
            self._make_room(0)
        if body.refusal is not None:
            raise body.refusal

    def _check(self, images: int, size: int) -> None:
        spare = min(images - 1, self.max_images // RESERVE) if self.images else 0
        spare_bytes = min(size, self.max_bytes // RESERVE) if spare else 0
        if self.images + images + spare > self.max_images:
            raise self._busy(images, "images", "in_flight", self.images, self.max_images, spare)
        held = self._whole_bytes  # none: a single body has its own limit
        if held and held + size + spare_bytes > self.max_bytes:
            raise self._busy(images, "bytes", "in_flight", held, self.max_bytes, spare)
        if self.images < tuning.ALWAYS_ADMITTED:
            return
        seconds = self._wait_seconds()
        if seconds * (self.images + images - 1 + spare) / self.images > self.max_seconds:
            raise self._busy(images, "seconds", "queued", round(seconds, 3), self.max_seconds, spare)

    def _make_room(self, size: int) -> None:
        """Reject incomplete bodies until there is room for so many bytes, or none are left."""
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
