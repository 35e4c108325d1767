"""Which images were logged lately, for those who tell later what they show."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import InvalidOption
from service.samples.record import Sample

# The latest logged images of a process whose truth can still be told: some 20 MiB.
MOST = 65_536

# How many classes an error names.
NAMED = 10


@dataclass(slots=True)
class Known:
    """An image that was logged.

    Attributes:
        time: its ``Sample``'s.
        model: that answered, with its ``classes`` and the ``answer``, an index. ``exit``: the stage that did.
        was_right: whether the answer was, by the last word on it; None while nobody told.
    """

    time: float
    model: str
    classes: Sequence[str]
    answer: int
    exit: str
    was_right: bool | None = None

    def class_of(self, label: str | int) -> int:
        """The index of a class that is named, or given by its index. Raises InvalidOption: it is none."""
        if isinstance(label, int):
            if not 0 <= label < len(self.classes):
                raise InvalidOption("label", label, f"a class of {self.model}, by name or from 0 to {self._last}")
            return label
        found = [index for index, name in enumerate(self.classes) if name == label]
        if len(found) > 1:
            raise InvalidOption("label", label, f"the index of a class: {len(found)} of {self.model} have this name")
        if not found:
            named = ", ".join(self.classes[:NAMED]) + (", …" if len(self.classes) > NAMED else "")
            raise InvalidOption("label", label, f"a class of {self.model}: {named}, or an index up to {self._last}")
        return found[0]

    @property
    def _last(self) -> int:
        return len(self.classes) - 1


class KnownImages:
    """The latest ``most`` logged images of this process. Used from the event loop's thread alone."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._images: OrderedDict[tuple[str, int], Known] = OrderedDict()

    def add(self, sample: Sample, classes: Sequence[str]) -> None:
        """Know an image; another one of the same id is forgotten."""
        key = sample.request_id, sample.index
        self._images[key] = Known(sample.time, sample.model, classes, sample.answer, sample.exit)
        self._images.move_to_end(key)
        if len(self._images) > self._most:
            self._images.popitem(last=False)

    def find(self, request_id: str, index: int) -> Known | None:
        """The image; None where it was not logged, or too many were since."""
        return self._images.get((request_id, index))
