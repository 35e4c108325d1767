"""Measured times of batches: between them, beyond them, on disk, and how they come to be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import DataError
from service.inference.latency import BUDGET_SECONDS, WORTHWHILE, LatencyProfile, LatencyTable, measure, measure_single
from service.inference.predictor import Predictor
from service.inference.single_scale import single_scale

TABLE = LatencyTable(({2: 0.03, 4: 0.05, 8: 0.06}, {1: 0.1, 4: 0.2}))

positive = st.floats(1e-6, 1e6)
times = st.dictionaries(st.sampled_from([1, 2, 4, 8, 16, 32]), positive, min_size=1)


@pytest.mark.parametrize(("size", "seconds"), [(2, 0.03), (4, 0.05), (8, 0.06), (3, 0.04), (2.5, 0.035), (6, 0.055)])
def test_time_between_two_sizes_is_interpolated(size: float, seconds: float) -> None:
    assert TABLE.seconds(0, size) == pytest.approx(seconds)


@pytest.mark.parametrize(("size", "seconds"), [(1, 0.015), (0, 0), (0.5, 0.0075), (16, 0.12), (12, 0.09)])
def test_time_below_and_beyond_what_was_measured_is_in_proportion(size: float, seconds: float) -> None:
    assert TABLE.seconds(0, size) == pytest.approx(seconds)


def test_passes_have_times_of_their_own() -> None:
    assert (TABLE.seconds(0, 4), TABLE.seconds(1, 4)) == (0.05, 0.2)


@given(low=times, size=st.floats(0.1, 64))
def test_time_never_jumps(low: dict[int, float], size: float) -> None:
    table = LatencyTable((low, low))
    before, after = table.seconds(0, size * (1 - 1e-9)), table.seconds(0, size * (1 + 1e-9))
    assert before == pytest.approx(after, rel=1e-5, abs=1e-6 * max(low.values()))


def test_single_scale_network_is_interpolated_too_and_takes_nothing_where_it_was_not_measured() -> None:
    table = LatencyTable(TABLE.stages, {2: 0.06, 4: 0.10})
    assert [table.single_seconds(size) for size in (1, 2, 3, 8)] == pytest.approx([0.03, 0.06, 0.08, 0.2])
    assert TABLE.single_seconds(3) == 0


def test_break_even_is_the_share_of_exits_that_pays_for_the_first_stage() -> None:
    """One that ends there takes 1 ms, any other 6, the single-scale network 4: 0.4 * 1 + 0.6 * 6 = 4."""
    three = ({1: 0.001}, {1: 0.002}, {1: 0.003})
    assert LatencyTable(three, {1: 0.004}).break_even(1) == pytest.approx(0.4)
    assert (LatencyTable(three, {1: 0.0005}).break_even(1) or 0) > 1
    assert LatencyTable(three).break_even(1) is None
    assert LatencyTable(({1: 0.001},), {1: 0.001}).break_even(1) is None


def test_best_batch_is_the_fastest_an_image() -> None:
    table = LatencyTable(({1: 1.0, 2: 1.0, 4: 1.0, 8: 4.0}, {1: 1.0, 2: 2.0, 4: 4.0}))
    assert (table.best_size(0, 8), table.best_size(1, 8)) == (4, 1)


def test_larger_batch_must_be_worth_its_wait() -> None:
    within, beyond = WORTHWHILE - 0.01, WORTHWHILE + 0.01
    assert LatencyTable(({1: within, 8: 8.0}, {1: 1.0})).best_size(0, 8) == 1
    assert LatencyTable(({1: beyond, 2: 2 * beyond, 4: 4 * beyond, 8: 8.0}, {1: 1.0})).best_size(0, 8) == 8


@pytest.mark.parametrize("limit", [1, 3, 4, 100])
def test_best_batch_is_at_most_the_limit(limit: int) -> None:
    constant = LatencyTable(({1: 1.0, 1024: 1.0}, {1: 1.0}))
    assert constant.best_size(0, limit) == limit


def test_no_batch_is_larger_than_what_was_measured() -> None:
    assert LatencyTable(({1: 1.0, 32: 1.0}, {1: 1.0, 8: 1.0})).best_size(0, 1024) == 32
    assert LatencyTable(({1: 1.0, 32: 1.0}, {1: 1.0, 8: 1.0})).best_size(1, 1024) == 8


def test_mean_is_of_the_sizes_that_all_measured() -> None:
    one, other = LatencyTable(({1: 1.0, 2: 3.0}, {1: 2.0})), LatencyTable(({1: 2.0}, {1: 4.0, 2: 9.0}))
    assert LatencyTable.mean([one, other]) == LatencyTable(({1: 1.5}, {1: 3.0}))


def test_mean_of_one_table_is_that_table() -> None:
    assert LatencyTable.mean([TABLE]) == TABLE


@given(low=times, high=times)
def test_table_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, low: dict[int, float], high: dict[int, float]
) -> None:
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    profile = LatencyProfile(LatencyTable((low, high), low), "tiny/1", "eager", "float32")
    profile.write(path)
    assert LatencyProfile.read(path) == profile


def test_profile_of_the_first_version_is_read_and_fits_any_model_of_two_stages(
    tmp_path: Path, predictor: Predictor
) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"low": {"1": 0.1}, "high": {"1": 0.2}}))
    profile = LatencyProfile.read(path)
    assert profile.table.stages == ({1: 0.1}, {1: 0.2})
    assert profile.fits(predictor)


def test_profile_fits_only_the_model_that_it_was_measured_with(predictor: Predictor) -> None:
    own = LatencyProfile.of(predictor, TABLE)
    assert own.fits(predictor)
    assert not replace(own, model="other/1").fits(predictor)
    assert not replace(own, precision="bfloat16").fits(predictor)
    assert not replace(own, table=LatencyTable(({1: 1.0},))).fits(predictor)


GOOD = {"low": {"1": 0.1}, "high": {"1": 0.2}}
BAD = {
    "empty": "",
    "binary": "\x00\xff",
    "cut": json.dumps(GOOD)[:-3],
    "a list": "[]",
    "a number": "7",
    "another file": json.dumps({"name": "tiny", "version": 1}),
    "one pass alone": json.dumps({"low": {"1": 0.1}}),
    "no sizes": json.dumps({**GOOD, "low": {}}),
    "sizes in a list": json.dumps({**GOOD, "low": [0.1]}),
    "size in words": json.dumps({**GOOD, "low": {"one": 0.1}}),
    "size of nothing": json.dumps({**GOOD, "low": {"0": 0.1}}),
    "negative size": json.dumps({**GOOD, "high": {"-1": 0.1}}),
    "time in words": json.dumps({**GOOD, "high": {"1": "long"}}),
    "no time": json.dumps({**GOOD, "high": {"1": None}}),
    "time of zero": json.dumps({**GOOD, "high": {"1": 0}}),
    "negative time": json.dumps({**GOOD, "high": {"1": -0.1}}),
    "endless time": '{"low": {"1": 0.1}, "high": {"1": Infinity}}',
    "time that is no number": '{"low": {"1": NaN}, "high": {"1": 0.1}}',
}


@pytest.mark.parametrize("name", BAD)
def test_file_that_is_no_profile_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(BAD[name], encoding="latin-1")
    with pytest.raises(DataError, match=re.escape(f"{path} is not a latency profile: ")) as caught:
        LatencyProfile.read(path)
    assert (caught.value.field, caught.value.value) == ("profile", str(path))


def test_missing_profile_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(DataError, match=re.escape(str(path))):
            LatencyProfile.read(path)


@pytest.fixture(scope="module")
def predictor(tiny_store: Path) -> Predictor:
    return Predictor.load(tiny_store / "tiny" / "1", "cpu", "float32")


def test_every_size_is_measured_where_time_allows(predictor: Predictor) -> None:
    table = measure(predictor, budget=1000 * BUDGET_SECONDS, sizes=(1, 3, 5))
    assert [set(times) for times in table.stages] == [{1, 3, 5}] * 2
    assert all(seconds > 0 for times in table.stages for seconds in times.values())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_single_scale_network_is_timed_beside_the_stages(stores: Mapping[int, Path], depth: int) -> None:
    predictor = Predictor.load(stores[depth] / "tiny" / "1", "cpu", "float32")
    table = measure_single(measure(predictor, sizes=(1, 2)), single_scale(predictor))
    assert len(table.stages) == depth
    assert set(table.single) == {1, 2}
    assert (table.single == table.stages[0]) == (depth == 1)
    assert table.single_seconds_per_image(2) is not None


def test_smallest_size_is_measured_however_little_time_there_is(predictor: Predictor) -> None:
    table = measure(predictor, budget=0.0, sizes=(2, 4, 8))
    assert [set(times) for times in table.stages] == [{2}] * 2


def test_what_was_measured_is_a_profile(predictor: Predictor, tmp_path: Path) -> None:
    table = measure(predictor, budget=0.0)
    LatencyProfile.of(predictor, table).write(tmp_path / "profile.json")
    assert LatencyProfile.read(tmp_path / "profile.json").table == table
