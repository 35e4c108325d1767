"""What the engine costs, measured for a moment."""

from __future__ import annotations

import asyncio

import pytest

import service.app as composition
from loadtest import engine_alone
from service.engine import decoding


def test_an_engine_whose_network_costs_nothing_answers_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((decoding, "decode"), (decoding, "in_sizes"), (composition, "Predictor")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    engine_alone.take_nothing()
    begun = iter(range(2))
    spent, taken = asyncio.run(engine_alone.run_engine(2, 100, lambda: next(begun)))
    assert len(spent) == len(taken) == 2
    assert min(*spent, *taken) > 0
