"""Which images are logged, and which of these run every stage.

A calibration table counts the outputs of every stage. Later stages see an exited image only if they run in the
background, as for an audit. Those images must be a random sample of all. So an image is *drawn* on its arrival, before
anything is known about it, and only if the audits have room for it however it ends. The draw depends on the load, never
on the image. So the drawn images have the same distribution as the traffic, without weights, and their bounds are
exact.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from service.engine.answer import Answer, Ask
from service.engine.entry import Entry
from service.engine.lanes import Lanes
from service.inference.predictor import Predictor
from service.samples.log import SampleLog
from service.samples.record import Floats, Sample


class Sampling:
    """Logs images of one model. Used in the event loop's thread.

    Args:
        log: the destination. ``predictor``: the model. ``lanes``: run the later stages in the audit lane.
    """

    def __init__(self, log: SampleLog, predictor: Predictor, lanes: Lanes) -> None:
        self._log = log
        self._predictor = predictor
        self._lanes = lanes
        self._unfinished: dict[Entry, tuple[Sample, bytes]] = {}

    def is_chosen(self) -> bool:
        """Whether the next image is logged."""
        return random.random() < self._log.share

    @contextmanager
    def drawn(self, entry: Entry) -> Iterator[None]:
        """Draw an image, if there is room, while the block answers it."""
        entry.is_drawn = self._lanes.reserve_audit()
        try:
            yield
        finally:
            if entry.is_drawn:  # its audit waits now, or is not needed
                self._lanes.free_audit()

    def answered(self, entry: Entry, body: bytes, ask: Ask, answer: Answer) -> None:
        """Log an image once all its stages have run, now or in the background."""
        sample = self._sample(entry, ask, answer)
        self._log.known.add(sample, self._predictor.spec.classes)
        if entry.runs_on and not self._is_complete(entry):
            self._unfinished[entry] = sample, body
            entry.on_completed = partial(self._finish, entry)
        else:
            self._log.add(replace(sample, outputs=_outputs(entry)), body)

    def close(self) -> None:
        """Log the images that never ran all stages."""
        for entry in list(self._unfinished):
            self._finish(entry)

    def _finish(self, entry: Entry) -> None:
        """The remaining stages have run, or were dropped."""
        if entry in self._unfinished:
            sample, body = self._unfinished.pop(entry)
            self._log.add(replace(sample, outputs=_outputs(entry)), body)

    def _is_complete(self, entry: Entry) -> bool:
        return len(entry.outputs) + len(entry.outputs_behind) == self._predictor.depth

    def _sample(self, entry: Entry, ask: Ask, answer: Answer) -> Sample:
        predictor, spec = self._predictor, self._predictor.spec
        best = answer.top_k[0]
        return Sample(
            time=time.time(),
            request_id=ask.request_id,
            index=ask.index,
            model=spec.reference,
            weights_sha256=spec.weights_sha256,
            runtime=predictor.runtime,
            precision=predictor.precision,
            temperatures=spec.temperatures,
            outputs=(),
            answer=best.index,
            label=best.label,
            exit=answer.exit,
            stage=answer.stage,
            reason=answer.reason,
            confidence=answer.confidence,
            threshold=answer.threshold,
            drawn=entry.is_drawn and not answer.cached,
            ms=1e3 * answer.seconds,
        )


def _outputs(entry: Entry) -> tuple[Floats, ...]:
    """Copies, because a row would keep its whole batch in memory."""
    return tuple(each.numpy().copy() for each in (*entry.outputs, *entry.outputs_behind))
