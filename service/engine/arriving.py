"""Incomplete bodies, and which to reject first if room is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import Busy


@dataclass(slots=True, eq=False)
class Body:
    """One body.

    Attributes:
        address: of its client.
        stop: called when it is rejected, to stop its reader. ``refusal``: the reason.
        size: bytes so far.
    """

    address: str
    stop: Callable[[], None]
    refusal: Busy | None = None
    size: int = 0


class Arriving:
    """Counts the bytes of incomplete bodies. Used only in the event loop's thread."""

    def __init__(self) -> None:
        self.bytes = 0
        self._bodies: dict[str, dict[Body, None]] = {}  # by address, oldest first
        self._held: Counter[str] = Counter()

    def add(self, body: Body, size: int) -> None:
        """Count new bytes of a body."""
        self._bodies.setdefault(body.address, {})[body] = None
        body.size += size
        self.bytes += size
        self._held[body.address] += size

    def remove(self, body: Body) -> None:
        """Remove a body that is complete or rejected."""
        of_address = self._bodies.get(body.address, {})
        if body not in of_address:
            return
        del of_address[body]
        self.bytes -= body.size
        self._held[body.address] -= body.size
        if not of_address:
            del self._bodies[body.address], self._held[body.address]

    def first_to_give_up(self) -> Body | None:
        """The oldest body of the address that holds the most bytes; None without any.

        So a client that sends many slow bodies competes only with itself. Clients that hold little lose nothing, unless
        a proxy hides all addresses: then the slowest bodies lose.
        """
        if not self._held:
            return None
        return next(iter(self._bodies[max(self._held, key=self._held.__getitem__)]))
