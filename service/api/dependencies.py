"""The parts that routes are handed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.engine.engine import Engine
from service.errors import Draining, NotFound
from service.inference.calibration import Calibration
from service.metrics import Metrics
from service.settings import Settings
from service.state.base import ConfigStore
from service.store import ModelStore


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a route may need, built once by ``create_app``."""

    settings: Settings
    store: ModelStore
    engine: Engine
    config: ConfigStore
    calibration: Calibration | None
    metrics: Metrics

    def check_model(self, name: str | None) -> str:
        """The served model's name; raises NotFound when ``name`` is another."""
        served = self.engine.spec.name
        if name is not None and name != served:
            raise NotFound(f"model is {name!r}; {served} is served", field="model", value=name, bound=served)
        return served

    def check_ready(self) -> None:
        """Raises Draining, saying why, unless work may be sent."""
        why = self.engine.why_not_ready()
        if why is not None:
            raise Draining(f"not ready: {why}")


def parts_of(request: Request) -> Parts:
    """The parts of the server that was asked."""
    parts: Parts = request.app.state.parts
    return parts


async def _parts(request: Request) -> Parts:  # a plain function would cost a thread each time
    return parts_of(request)


Injected = Annotated[Parts, Depends(_parts)]
