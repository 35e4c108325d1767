from __future__ import annotations

from loadtest.bare_loop import BareLoop, Rate, settings
from loadtest.contenders.registry import LOWFIRST, Contender
from loadtest.load import Closed
from loadtest.models import Network
from loadtest.ratios import Cost, Spread
from loadtest.sections.overload import recovery
from loadtest.sections.saturation import Lane, Saturation

CASCADE = BareLoop((Rate(1, 1, 60), Rate(2, 1, 100)), 9, Cost(1, 2, 10), escalated=0.35)
SINGLE = BareLoop((Rate(2, 1, 80),), 12, Cost(1, 0, 10), escalated=1)


def _seen(rate: float) -> Closed:
    return Closed(int(rate), 1.0, {"200": int(rate)}, 0, 1, 2, 3)


def _saturation() -> Saturation:
    network = Network.resnet18
    ours = Lane(Contender(LOWFIRST, "cascade", "float32", "eager"), network, [_seen(90)], [CASCADE])
    mosec = Lane(Contender("Mosec", "single", "float32", "eager"), network, [_seen(45)], [SINGLE])
    ray = Lane(Contender("Ray Serve", "cascade", "float32", "eager"), network, [_seen(60)], [CASCADE])
    broken = Lane(Contender("BentoML", "cascade", "float32", "eager"), network, failure="did not come up")
    return Saturation("same", [ours, mosec, ray, broken])


def test_peers_are_compared_with_lowfirst() -> None:
    found = _saturation()
    ours, mosec, ray, _ = found.lanes
    assert found.ratio(mosec).median == 2
    assert found.ceiling(mosec) == 11 / 6.5
    assert found.ceiling(ray) is None
    assert found.share_of_bare_loop(ours) == Spread(0.9, 0.9, 0.9)


def test_the_best_peers_are_those_that_ran() -> None:
    assert [lane.contender.name for lane in _saturation().best_peers(Network.resnet18, 5)] == ["Ray Serve", "Mosec"]


def test_a_contender_that_failed_keeps_its_line() -> None:
    *_, broken = _saturation().rows()
    assert broken == {"network": "resnet18", "contender": "BentoML, cascade", "not answered": "did not come up"}


def test_recovery_is_the_first_second_as_calm_as_the_worst_before() -> None:
    assert recovery([50, 60, None], [None, 900, 61, 60, 40]) == 3
    assert recovery([50], [51, 52]) is None


def test_one_worker_a_core_is_among_the_settings_tried() -> None:
    assert {(1, 1), (2, 1), (1, 2)} <= set(settings(2))
    assert (1, 1) in settings(1)
