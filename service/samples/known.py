"""The images that were logged recently, so that feedback can refer to them."""

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
        time: that of its ``Sample``.
        model: the model that answered, with its ``classes`` and the ``answer``, an index. ``exit``: the stage that
            answered.
        was_right: whether the answer was right, by the latest feedback; None without feedback.
    """

    time: float
    model: str
    classes: Sequence[str]
    answer: int
    exit: str
    was_right: bool | None = None

    def class_of(self, label: str | int) -> int:
        """The index of a class, given by name or index. Raises InvalidOption if there is no such class."""
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
    """The latest ``most`` logged images of this process. Use it only in the event loop's thread."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._images: OrderedDict[tuple[str, int], Known] = OrderedDict()

    def add(self, sample: Sample, classes: Sequence[str]) -> None:
        """Add an image. It replaces an earlier one with the same id."""
        key = sample.request_id, sample.index
        self._images[key] = Known(sample.time, sample.model, classes, sample.answer, sample.exit)
        self._images.move_to_end(key)
        if len(self._images) > self._most:
            self._images.popitem(last=False)

    def find(self, request_id: str, index: int) -> Known | None:
        """The image; None if it was not logged, or if too many were logged after it."""
        return self._images.get((request_id, index))
