"""Which images are logged, and which of these get every stage.

A table of calibration counts what every stage says. An image that exits is only seen by the later ones if they run
behind its answer, as for an audit. Those chosen for that must be a random sample of all: so an image is *drawn* on its
arrival, before anything is known of it, and only where the audits have room for it however it will end. Whether it is
drawn depends on how busy the server is, never on the image; of all that are drawn the shares are those of the traffic,
without weights, and the bounds for them exact.
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
    """Logs images of one model. In the event loop's thread.

    Args:
        log: where to. ``predictor``: what answers. ``lanes``: whose audits run the stages behind an answer.
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
        """Have an image drawn, if there is room, while the block answers it."""
        entry.is_drawn = self._lanes.reserve_audit()
        try:
            yield
        finally:
            if entry.is_drawn:  # it waits for its audit by now, or needs none
                self._lanes.free_audit()

    def answered(self, entry: Entry, body: bytes, ask: Ask, answer: Answer) -> None:
        """Log an image once all its stages have run: now, or behind its answer."""
        sample = self._sample(entry, ask, answer)
        self._log.known.add(sample, self._predictor.spec.classes)
        if entry.runs_on and not self._is_complete(entry):
            self._unfinished[entry] = sample, body
            entry.on_completed = partial(self._finish, entry)
        else:
            self._log.add(replace(sample, outputs=_outputs(entry)), body)

    def close(self) -> None:
        """Log what never got its stages."""
        for entry in list(self._unfinished):
            self._finish(entry)

    def _finish(self, entry: Entry) -> None:
        """Its other stages have run, or were given up."""
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
    """Copies: a row would keep its whole batch."""
    return tuple(each.numpy().copy() for each in (*entry.outputs, *entry.outputs_behind))
