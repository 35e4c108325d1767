"""How much work may be in flight. What is beyond is turned away before its body is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import Busy


class Admission:
    """Counts of work in flight, used from the event loop's thread alone.

    Args:
        max_images, max_bytes: limits over all requests.
        wait_seconds: how long a new image would have to wait, for Retry-After.
        on_reject: told which limit was reached.
    """

    def __init__(
        self,
        max_images: int,
        max_bytes: int,
        wait_seconds: Callable[[], float] = lambda: 0.0,
        on_reject: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.max_images = max_images
        self.max_bytes = max_bytes
        self.images = 0
        self.bytes = 0
        self._wait_seconds = wait_seconds
        self._on_reject = on_reject

    @contextmanager
    def admit(self, *, images: int = 0, size: int = 0) -> Iterator[None]:
        """Hold room for ``images`` and ``size`` bytes for as long as the block runs.

        Raises:
            Busy: a limit is reached; nothing is held.
        """
        if self.images + images > self.max_images:
            raise self._busy("images", self.images, self.max_images)
        if self.bytes and self.bytes + size > self.max_bytes:  # one body alone is bounded elsewhere
            raise self._busy("bytes", self.bytes, self.max_bytes)
        self.images += images
        self.bytes += size
        try:
            yield
        finally:
            self.images -= images
            self.bytes -= size

    def _busy(self, what: str, value: int, bound: int) -> Busy:
        self._on_reject(what)
        return Busy(
            f"{value} {what} are in flight; the limit is {bound}",
            retry_after_seconds=max(1, math.ceil(self._wait_seconds())),
            field=f"{what}_in_flight",
            value=value,
            bound=bound,
        )
