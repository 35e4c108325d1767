"""Bodies of which a part is here, and which are given up first where room is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import Busy


@dataclass(slots=True, eq=False)
class Body:
    """One body.

    Attributes:
        address: whom it comes from.
        stop: called once it is given up, to stop its reader. ``refusal``: why it was.
        size: its bytes so far.
    """

    address: str
    stop: Callable[[], None]
    refusal: Busy | None = None
    size: int = 0


class Arriving:
    """Counts the bytes of bodies that are not whole yet. Used from the event loop's thread alone."""

    def __init__(self) -> None:
        self.bytes = 0
        self._bodies: dict[str, dict[Body, None]] = {}  # by address, in the order in which they began
        self._held: Counter[str] = Counter()

    def add(self, body: Body, size: int) -> None:
        """So many more bytes of it came."""
        self._bodies.setdefault(body.address, {})[body] = None
        body.size += size
        self.bytes += size
        self._held[body.address] += size

    def remove(self, body: Body) -> None:
        """It is whole, or of no use any more."""
        of_address = self._bodies.get(body.address, {})
        if body not in of_address:
            return
        del of_address[body]
        self.bytes -= body.size
        self._held[body.address] -= body.size
        if not of_address:
            del self._bodies[body.address], self._held[body.address]

    def first_to_give_up(self) -> Body | None:
        """Of the address that holds the most bytes the body that began first; None without any.

        So who sends many bodies slowly loses them to each other. A client that holds little loses nothing, unless it
        comes by a proxy that is all addresses: then the slowest lose.
        """
        if not self._held:
            return None
        return next(iter(self._bodies[max(self._held, key=self._held.__getitem__)]))
