"""True labels reported by clients: stored beside the log of the process that answered, and counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from service.errors import InvalidOption, NotFound
from service.metrics import Metrics
from service.processes.siblings import Siblings
from service.samples.known import MOST, Known
from service.samples.log import SampleLog
from service.samples.record import Truth

KIND, COUNTED = "feedback", "labelled"  # in messages between processes

Label = str | int


class Feedback:
    """Stores feedback on images that any process of this server answered. Used in the event loop's thread.

    Args:
        log: of this process; None without a sample log.
        metrics: count the first feedback of each image.
        siblings: the other processes.
    """

    def __init__(self, log: SampleLog | None, metrics: Metrics, siblings: Siblings) -> None:
        self._log = log
        self._metrics = metrics
        self._siblings = siblings
        self._labelled: dict[str, Counter[str]] = {}  # images with feedback, by model and exit
        self._right: dict[str, Counter[str]] = {}  # those with a right answer
        siblings.answer(KIND, lambda asked: self._take(*asked))
        siblings.answer(COUNTED, self._counted)

    async def take(self, request_id: str, index: int, label: Label) -> dict[str, Any]:
        """Store a true label; returns ``model``, ``label``, ``answered`` (by name), ``right``.

        Raises:
            NotFound: there is no log, or no process knows the image.
            InvalidOption: the model has no such class.
            Busy: too many wait to be written.
        """
        if self._log is None:
            raise NotFound("no requests are logged: LOWFIRST_SAMPLE_LOG is unset", field="request_id", value=request_id)
        found = self._take(request_id, index, label)
        if found is None:
            told = await self._siblings.others(KIND, [request_id, index, label])
            found = next(iter(told), None)
        if found is None:
            raise NotFound(
                f"request_id is {request_id!r}, index {index}; it is not among the latest {MOST} images that each "
                "process has logged",
                field="request_id",
                value=request_id,
                bound=MOST,
            )
        if "bound" in found:
            raise InvalidOption("label", label, found["bound"])
        return found

    async def labelled(self, model: str) -> tuple[Mapping[str, int], Mapping[str, int]] | None:
        """Images of ``name/version`` with feedback, and those with a right answer; both by exit.

        Counts are of all processes; None without a log.
        """
        if self._log is None:
            return None
        images, right = Counter[str](), Counter[str]()
        for told in (self._counted(model), *await self._siblings.others(COUNTED, model)):
            images.update(told[0])
            right.update(told[1])
        return images, right

    def _counted(self, model: str) -> tuple[Mapping[str, int], Mapping[str, int]]:
        return self._labelled.get(model, {}), self._right.get(model, {})

    def _count(self, known: Known, is_right: bool) -> None:
        if known.was_right is None:
            self._labelled.setdefault(known.model, Counter())[known.exit] += 1
            self._metrics.feedback.labels(known.model).inc()
            self._metrics.feedback_right.labels(known.model).inc(is_right)
        self._right.setdefault(known.model, Counter())[known.exit] += is_right - bool(known.was_right)
        known.was_right = is_right

    def _take(self, request_id: str, index: int, label: Label) -> dict[str, Any] | None:
        """The result of ``take``, or the allowed labels; None if this process does not know the image."""
        known = None if self._log is None else self._log.known.find(request_id, index)
        if self._log is None or known is None:
            return None
        try:
            answer = known.class_of(label)
        except InvalidOption as error:
            return {"bound": error.bound}
        name, is_right = known.classes[answer], answer == known.answer
        self._log.tell(Truth(time.time(), request_id, index, known.time, known.model, answer, name))
        self._count(known, is_right)
        return {"model": known.model, "label": name, "answered": known.classes[known.answer], "right": is_right}
