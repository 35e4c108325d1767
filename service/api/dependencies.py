"""The parts that routes use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from service.api.feedback import Feedback
from service.api.following import Following
from service.api.observed import Observed
from service.engine.admission import Admission
from service.errors import Draining
from service.hosting.models import Models
from service.hosting.switching import Switching
from service.hosting.trials import Trials
from service.metrics import Metrics
from service.processes.siblings import Siblings
from service.samples.log import SampleLog
from service.settings import Settings
from service.state.base import ConfigStore, Targets

if TYPE_CHECKING:
    from service.api.tracing import Traces


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a route may need, built once by ``create_app``."""

    settings: Settings
    models: Models
    switching: Switching
    trials: Trials
    admission: Admission
    config: ConfigStore
    metrics: Metrics
    targets: Targets
    siblings: Siblings
    observed: Observed
    samples: SampleLog | None
    feedback: Feedback
    following: Following
    traces: Traces | None = None

    def check_ready(self) -> None:
        """Raise Draining, with the reason, unless this process or another one of the server is ready."""
        why = self.models.why_not_ready()
        if why is not None and (self.models.is_draining or not self.siblings.ready):
            raise Draining(f"not ready: {why}")


def parts_of(request: Request) -> Parts:
    """The parts of the server that got the request."""
    parts: Parts = request.app.state.parts
    return parts


async def _parts(request: Request) -> Parts:  # a plain function would need a thread each time
    return parts_of(request)


Injected = Annotated[Parts, Depends(_parts)]
