"""Work in flight is bounded, and what is turned away is told when to come back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import tuning
from service.engine.admission import Admission
from service.engine.arriving import Body
from service.errors import Busy


def test_room_is_held_while_the_block_runs() -> None:
    admission = Admission(max_images=2, max_bytes=100)
    with admission.admit(images=1, size=30), admission.admit(images=1, size=70):
        assert (admission.images, admission.bytes) == (2, 100)
    assert (admission.images, admission.bytes) == (0, 0)


def test_room_is_given_back_when_the_block_raises() -> None:
    admission = Admission(max_images=1, max_bytes=100)
    with pytest.raises(KeyError), admission.admit(images=1, size=30):
        raise KeyError
    assert (admission.images, admission.bytes) == (0, 0)


def test_one_image_too_many_is_busy_and_holds_nothing() -> None:
    admission = Admission(max_images=1, max_bytes=100)
    with admission.admit(images=1, size=10):
        with pytest.raises(Busy) as busy, admission.admit(images=1, size=10):
            pytest.fail("admitted")
        assert (admission.images, admission.bytes) == (1, 10)
    assert (busy.value.field, busy.value.value, busy.value.bound) == ("images_in_flight", 1, 1)


def test_one_byte_too_many_is_busy() -> None:
    admission = Admission(max_images=9, max_bytes=100)
    with (
        admission.admit(images=1, size=60),
        pytest.raises(Busy, match="60 bytes are in flight") as busy,
        admission.admit(images=1, size=41),
    ):
        pytest.fail("admitted")
    assert (busy.value.field, busy.value.bound) == ("bytes_in_flight", 100)


def test_body_larger_than_the_limit_is_admitted_alone() -> None:
    admission = Admission(max_images=9, max_bytes=100)
    with admission.admit(images=1, size=500):
        assert admission.bytes == 500
        with pytest.raises(Busy), admission.admit(images=1, size=1):
            pytest.fail("admitted")


def test_image_behind_too_much_work_is_busy_unless_few_are_in_flight() -> None:
    queued = 2.0
    reasons: list[str] = []
    admission = Admission(
        99, 100, max_seconds=1.5, wait_seconds=lambda: queued, on_reject=lambda reason, _: reasons.append(reason)
    )
    with admission.admit(images=tuning.ALWAYS_ADMITTED - 1), admission.admit(images=1):
        with pytest.raises(Busy, match=r"2\.0 seconds are queued; .* 1\.5") as busy, admission.admit(images=1):
            pytest.fail("admitted")
        assert (busy.value.field, busy.value.value, busy.value.bound) == ("seconds_queued", 2.0, 1.5)
        assert reasons == ["seconds"]
        queued = 1.5
        with admission.admit(images=1):
            assert admission.images == tuning.ALWAYS_ADMITTED + 1


Admitted = Callable[..., int]


@pytest.fixture
def admitted() -> Iterator[Admitted]:
    """How many requests of so many images get in, one after another; they stay until the test ends."""
    with contextlib.ExitStack() as held:

        def count(admission: Admission, images: int, size: int = 0) -> int:
            for before in range(999):
                try:
                    held.enter_context(admission.admit(images=images, size=size))
                except Busy:
                    return before
            pytest.fail("no limit is reached")

        yield count


def test_batches_leave_places_to_requests_of_few_images(admitted: Admitted) -> None:
    admission = Admission(max_images=256, max_bytes=1000)
    assert admitted(admission, 64) == 3
    assert admitted(admission, 8) == 7
    assert admitted(admission, 2) == 3
    assert admitted(admission, 1) == 2
    assert admission.images == 256


def test_batches_leave_bytes_to_single_images(admitted: Admitted) -> None:
    admission = Admission(max_images=256, max_bytes=1000)
    assert admitted(admission, 2, size=200) == 4
    assert admitted(admission, 1, size=50) == 4


def test_batches_leave_queued_seconds_to_single_images(admitted: Admitted) -> None:
    admission = Admission(max_images=256, max_bytes=1000, max_seconds=0.75, wait_seconds=lambda: admission.images / 200)
    assert admitted(admission, 32) == 3  # 0.48 seconds
    assert admitted(admission, 1) == 150 + 1 - 96


def test_request_of_more_images_than_may_be_taken_of_the_limit_is_admitted_alone() -> None:
    admission = Admission(max_images=64, max_bytes=1000)
    with admission.admit(images=1), pytest.raises(Busy, match="64 images together leave room for 16 more") as busy:
        admission.admit(images=64).__enter__()
    assert (busy.value.value, busy.value.bound) == (1, 64)
    with admission.admit(images=64):
        assert admission.images == 64


@settings(deadline=None)
@given(st.lists(st.integers(2, 64), max_size=60))
def test_client_of_single_images_always_has_a_place_beside_batches(batches: list[int]) -> None:
    admission = Admission(max_images=256, max_bytes=1000)
    with contextlib.ExitStack() as held:
        for images in batches:
            with contextlib.suppress(Busy):
                held.enter_context(admission.admit(images=images))
        held.enter_context(admission.admit(images=1))


def test_check_says_whether_one_image_would_have_room_and_holds_nothing() -> None:
    admission = Admission(max_images=1, max_bytes=100)
    admission.check()
    with admission.admit(images=1, size=30), pytest.raises(Busy, match="1 images are in flight"):
        admission.check()
    with admission.admit(images=0, size=100), pytest.raises(Busy, match="100 bytes are in flight"):
        admission.check()
    admission.check()


@pytest.mark.parametrize(("waits", "retry"), [(0.0, 1), (0.2, 1), (2.0, 2), (2.1, 3)])
def test_retry_after_is_the_wait_in_whole_seconds_at_least_one(waits: float, retry: int) -> None:
    admission = Admission(max_images=0, max_bytes=0, wait_seconds=lambda: waits)
    with pytest.raises(Busy) as busy, admission.admit(images=1):
        pytest.fail("admitted")
    assert busy.value.retry_after_seconds == retry


def test_rejections_are_told_by_limit_with_the_images_turned_away() -> None:
    told: list[tuple[str, int]] = []
    admission = Admission(max_images=1, max_bytes=10, on_reject=lambda reason, images: told.append((reason, images)))
    with admission.admit(images=0, size=5):
        for wanted in ({"images": 2}, {"images": 1, "size": 6}):
            with pytest.raises(Busy), admission.admit(**wanted):
                pytest.fail("admitted")
    assert told == [("images", 2), ("bytes", 1)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50)), max_size=20))
def test_limits_hold_whatever_is_asked(wanted: list[tuple[int, int]]) -> None:
    admission = Admission(max_images=8, max_bytes=80)
    held = []
    for images, size in wanted:
        room = admission.admit(images=images, size=size)
        try:
            room.__enter__()
        except Busy:
            continue
        held.append(room)
        assert admission.images <= 8
        assert admission.bytes <= 80
    for room in held:
        room.__exit__(None, None, None)
    assert (admission.images, admission.bytes) == (0, 0)


class Upload:
    """A body on its way, and whether its reader was stopped."""

    def __init__(self, admission: Admission, address: str, size: int) -> None:
        self.was_stopped = False
        self.body = Body(address, self._stop)
        self._room = admission.arriving(self.body)
        self._room.__enter__()
        admission.arrived(self.body, size)

    def end(self) -> None:
        """It is whole, or its reader gave up."""
        self._room.__exit__(None, None, None)

    def _stop(self) -> None:
        self.was_stopped = True


def test_bytes_of_a_body_count_as_they_come_and_take_no_place() -> None:
    admission = Admission(max_images=1, max_bytes=100)
    upload = Upload(admission, "a", 30)
    admission.arrived(upload.body, 20)
    assert (admission.images, admission.bytes) == (0, 50)
    upload.end()
    assert admission.bytes == 0


def test_whole_body_takes_the_room_of_those_that_are_not() -> None:
    told: list[tuple[str, int]] = []
    admission = Admission(9, 100, on_reject=lambda reason, images: told.append((reason, images)))
    first, second = Upload(admission, "a", 40), Upload(admission, "a", 40)
    with admission.admit(images=1, size=50):
        assert (first.was_stopped, second.was_stopped) == (True, False)
        assert first.body.refusal is not None
        assert (first.body.refusal.field, first.body.refusal.value) == ("bytes_in_flight", 80)
        assert admission.bytes == 90
    assert told == [("bytes", 1)]
    first.end()
    second.end()
    assert admission.bytes == 0


def test_address_that_holds_the_most_gives_up_its_oldest_body() -> None:
    admission = Admission(max_images=9, max_bytes=100)
    modest = Upload(admission, "modest", 20)
    greedy = [Upload(admission, "greedy", 40), Upload(admission, "greedy", 30)]
    late = Upload(admission, "late", 25)
    assert [upload.was_stopped for upload in (modest, *greedy, late)] == [False, True, False, False]
    assert admission.bytes == 75


def test_body_that_has_to_make_room_for_others_is_told_at_once() -> None:
    admission = Admission(max_images=9, max_bytes=100)
    with admission.admit(images=1, size=60):
        with pytest.raises(Busy, match="110 bytes are in flight"):
            Upload(admission, "a", 50)
        assert admission.bytes == 60


def test_body_that_is_alone_may_grow_beyond_the_limit() -> None:
    admission = Admission(max_images=9, max_bytes=100)
    upload = Upload(admission, "a", 90)
    admission.arrived(upload.body, 90)
    assert (admission.bytes, upload.was_stopped) == (180, False)
