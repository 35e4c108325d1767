"""How much work may be in flight. What is beyond is turned away before its body is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import Busy

# Images in flight that are accepted however long the device takes for them.
ALWAYS = 16


class Admission:
    """Counts of work in flight, used from the event loop's thread alone.

    Args:
        max_images, max_bytes: limits over all requests.
        max_seconds: of queued work; what comes behind that much is turned away, unless few images are in flight.
        wait_seconds: how long a new image would have to wait.
        on_reject: told which limit was reached, and how many images are turned away.
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
        self.bytes = 0
        self._wait_seconds = wait_seconds
        self._on_reject = on_reject

    @contextmanager
    def admit(self, *, images: int = 0, size: int = 0, held: int = 0) -> Iterator[None]:
        """Hold room for ``images`` and ``size`` bytes for as long as the block runs.

        ``held`` images have room already, and are turned away with these.

        Raises:
            Busy: a limit is reached; nothing is held.
        """
        if self.images + images > self.max_images:
            raise self._busy(images + held, "images", "in_flight", self.images, self.max_images)
        if self.bytes and self.bytes + size > self.max_bytes:  # one body alone is bounded elsewhere
            raise self._busy(images + held, "bytes", "in_flight", self.bytes, self.max_bytes)
        if self.images >= ALWAYS and (seconds := self._wait_seconds()) > self.max_seconds:
            raise self._busy(images + held, "seconds", "queued", round(seconds, 3), self.max_seconds)
        self.images += images
        self.bytes += size
        try:
            yield
        finally:
            self.images -= images
            self.bytes -= size

    def _busy(self, images: int, what: str, where: str, value: float, bound: float) -> Busy:
        self._on_reject(what, max(1, images))
        return Busy(
            f"{value} {what} are {where.replace('_', ' ')}; the limit is {bound}",
            retry_after_seconds=max(1, math.ceil(self._wait_seconds())),
            field=f"{what}_{where}",
            value=value,
            bound=bound,
        )
