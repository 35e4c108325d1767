"""The parts that routes are handed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.engine.models import Models
from service.metrics import Metrics
from service.settings import Settings
from service.state.base import ConfigStore


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a route may need, built once by ``create_app``."""

    settings: Settings
    models: Models
    config: ConfigStore
    metrics: Metrics


def parts_of(request: Request) -> Parts:
    """The parts of the server that was asked."""
    parts: Parts = request.app.state.parts
    return parts


async def _parts(request: Request) -> Parts:  # a plain function would cost a thread each time
    return parts_of(request)


Injected = Annotated[Parts, Depends(_parts)]
