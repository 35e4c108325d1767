"""What a network takes before anything is trained."""

from __future__ import annotations

import pytest
import torch

from service.evaluation import architectures
from service.evaluation.architectures import BATCH, Footprint, footprint, measured_with
from service.networks.cost import cost


def test_footprint_is_of_the_base_network_at_both_resolutions() -> None:
    each, both = footprint("densenet121"), cost("ms_densenet121", 1000, 224)
    assert (each.resolution, each.parameters) == (224, 7_978_856)
    assert (each.low_mmacs, each.high_mmacs) == both
    assert each.low_ms is each.high_ms is each.break_even is None


def test_break_even_is_the_share_of_exits_that_pays_for_the_low_pass() -> None:
    each = Footprint("any", 224, 1, 1.0, 4.0, low_ms=3, high_ms=12)
    assert each.break_even == 0.25


def test_both_resolutions_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "SECONDS", 0.01)
    threads = torch.get_num_threads()
    each = footprint("mobilenet_v1_025", timed=True)
    assert each.low_ms is not None
    assert each.high_ms is not None
    assert 0 < each.low_ms < each.high_ms < 1000
    assert torch.get_num_threads() == threads
    assert f"batches of {BATCH}" in measured_with()
