"""How many processes there are, and what each gets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import admission
from service.processes import share as sharing
from service.processes.share import how_many, is_on_gpu, part, share
from service.settings import Settings


@pytest.mark.parametrize(
    ("cores", "processes"), [(1, 1), (2, 2), (3, 2), (4, 2), (6, 3), (8, 4), (16, 8), (17, 8), (128, 8)]
)
def test_auto_takes_two_cores_for_each_process(cores: int, processes: int) -> None:
    assert how_many(cores, on_gpu=False) == processes


def test_auto_is_one_process_on_a_gpu() -> None:
    assert how_many(64, on_gpu=True) == 1
    assert is_on_gpu("cuda:1")
    assert not is_on_gpu("cpu")


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 64))
def test_parts_are_the_whole_or_one_each(whole: int, count: int) -> None:
    parts = [part(whole, index, count) for index in range(count)]
    assert sum(parts) == max(whole, count)
    assert max(parts) - min(parts) <= 1
    assert min(parts) >= 1


def test_limits_are_shared_out() -> None:
    whole = Settings(
        max_images_in_flight=255, max_bytes_in_flight=1000, feature_slots=9, cache_entries=5,
        max_batch_images=2, max_batch_bytes=10, workers=5, decode_threads=0,
    )  # fmt: skip
    both = [share(whole, index, 2) for index in range(2)]
    assert [each.max_images_in_flight for each in both] == [128, 127]
    assert [each.max_bytes_in_flight for each in both] == [500, 500]
    assert [each.feature_slots for each in both] == [5, 4]
    assert [each.cache_entries for each in both] == [3, 2]
    assert [each.workers for each in both] == [3, 2]
    assert [each.decode_threads for each in both] == [0, 0]


def test_a_process_has_room_for_the_largest_request_that_the_server_takes() -> None:
    each = share(Settings(), 7, 8)
    assert each.max_images_in_flight == 86  # of which a batch of 64 leaves a quarter
    assert each.max_bytes_in_flight > Settings().max_batch_bytes * 4 / 3
    assert share(Settings(max_images_in_flight=3), 0, 8).max_images_in_flight == 3


def test_processes_reckon_with_what_admission_leaves_to_others() -> None:
    assert sharing.RESERVE == admission.RESERVE


def test_what_is_left_to_the_process_stays_so() -> None:
    each = share(Settings(), 0, 2)
    assert (each.workers, each.decode_threads, each.cache_entries) == (None, None, 0)
    assert each.port == Settings().port
