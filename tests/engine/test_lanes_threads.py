"""Many threads at the same lanes: nobody sleeps while there is work, and nobody is left waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from service.engine import tuning
from service.engine.answer import Reason
from service.engine.entry import Entry
from service.engine.lanes import Batch, Lanes
from service.errors import DeviceFailed
from tests.engine.lanes_of import TIMEOUT, MakeEntry, entry_of, go_on, taken, untimed


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Runs once, to let errors through: the futures of entries must belong to one."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def make_entry(loop: asyncio.AbstractEventLoop) -> MakeEntry:
    return lambda arrival: entry_of(loop, arrival)


class Watched(asyncio.Future[tuple[int, Reason] | None]):
    """Counts how often it was looked at. Who looks holds the lanes' lock, until it waits or has its batch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.looks = threading.Semaphore(0)

    def done(self) -> bool:
        self.looks.release()
        return super().done()

    def await_looks(self, count: int) -> None:
        for _ in range(count):
            assert self.looks.acquire(timeout=TIMEOUT)


def run_in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def work_through(lanes: Lanes, ran: Callable[[Batch], None]) -> threading.Thread:
    """A started thread that runs batches until there are no more; none of its images escalates."""

    def work() -> None:
        while (batch := lanes.wait()) is not None:
            ran(batch)
            lanes.release(batch.slots)

    return run_in_thread(work)


def feed(lanes: Lanes, entries: list[Entry]) -> threading.Thread:
    """A started thread that pushes ``entries`` one by one."""

    def push() -> None:
        for entry in entries:
            lanes.push([entry])

    return run_in_thread(push)


def until(reached: Callable[[], bool]) -> None:
    """Look until other threads have got there."""
    end = time.monotonic() + TIMEOUT
    while not reached():
        assert time.monotonic() < end
        time.sleep(0)


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(TIMEOUT)
    assert not any(thread.is_alive() for thread in threads)


def short_of_slots(
    loop: asyncio.AbstractEventLoop, make_entry: MakeEntry, depth: int = 2
) -> tuple[Lanes, Batch, Watched]:
    """The only slot is held by a batch that runs, and another image waits for it."""
    lanes = Lanes(untimed(1, depth), slots=1)
    lanes.push([make_entry(0.0)])
    only = taken(lanes.take(0.0))
    waiting = make_entry(1.0)
    waiting.future = future = Watched(loop)
    lanes.push([waiting])
    return lanes, only, future


def test_every_worker_leaves_closed_lanes_though_few_slots_come_free(
    loop: asyncio.AbstractEventLoop, make_entry: MakeEntry
) -> None:
    lanes, only, future = short_of_slots(loop, make_entry)
    threads = [work_through(lanes, lambda batch: None) for _ in range(6)]
    future.await_looks(6)
    lanes.close()
    future.await_looks(6)
    lanes.release(only.slots)
    join(threads)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_worker_that_waits_for_a_slot_is_woken_by_one_that_an_exit_gave_back(
    loop: asyncio.AbstractEventLoop, make_entry: MakeEntry, depth: int
) -> None:
    lanes, only, future = short_of_slots(loop, make_entry, depth)
    ran = threading.Semaphore(0)
    worker = work_through(lanes, lambda batch: ran.release())
    future.await_looks(1)
    go_on(lanes, only, [])
    assert ran.acquire(timeout=TIMEOUT)
    lanes.close()
    join([worker])


def test_workers_that_wait_are_woken_by_a_push(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(4), slots=4)
    ran = threading.Semaphore(0)
    threads = [work_through(lanes, lambda batch: ran.release(len(batch.entries))) for _ in range(3)]
    for arrival in range(30):
        lanes.push([make_entry(float(arrival))])
    for _ in range(30):
        assert ran.acquire(timeout=TIMEOUT)
    lanes.close()
    join(threads)


def test_workers_that_wait_are_woken_by_an_audit(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(4), slots=4, audit_backlog=4)
    ran = threading.Semaphore(0)
    threads = [work_through(lanes, lambda batch: ran.release(len(batch.entries))) for _ in range(2)]
    for _ in range(10):
        entry = make_entry(0.0)
        entry.slot = 0
        assert lanes.audit(1, entry)
        assert ran.acquire(timeout=TIMEOUT)
    lanes.close()
    join(threads)


def test_many_threads_run_every_image_once(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(4), slots=3)
    entries = [make_entry(float(i % 7)) for i in range(400)]
    ran: list[Entry] = []
    threads = [work_through(lanes, lambda batch: ran.extend(batch.entries)) for _ in range(4)]
    join([feed(lanes, part) for part in (entries[::2], entries[1::2])])
    lanes.close()
    join(threads)
    assert sorted(map(id, ran)) == sorted(map(id, entries))
    assert lanes.free_slots == 3


# decoders wait for room


def decode_through(lanes: Lanes, entries: list[Entry], depths: list[int]) -> threading.Thread:
    """A started thread that pushes each of ``entries`` once there is room, and notes how many wait then."""

    def decode() -> None:
        for entry in entries:
            lanes.wait_for_room()
            lanes.push([entry])
            depths.append(lanes.depths[0])

    return run_in_thread(decode)


def test_decoders_stay_a_few_batches_ahead_and_no_more(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(2), slots=4)
    depths: list[int] = []
    decoders = [decode_through(lanes, [make_entry(0.0) for _ in range(50)], depths) for _ in range(3)]
    ran = 0
    while ran < 150:
        until(lambda: len(depths) == 150 or lanes.depths[0] >= tuning.DECODED_AHEAD * 2)  # nothing is run before
        batch = taken(lanes.take(0.0))
        ran += len(batch.entries)
        lanes.release(batch.slots)
    join(decoders)
    assert tuning.DECODED_AHEAD * 2 <= max(depths) <= tuning.DECODED_AHEAD * 2 + len(decoders) - 1


def full(make_entry: MakeEntry, slots: int = 4) -> tuple[Lanes, list[Entry]]:
    """Lanes that let no decoder go on."""
    lanes = Lanes(untimed(2), slots=slots)
    entries = [make_entry(float(i)) for i in range(tuning.DECODED_AHEAD * 2)]
    lanes.push(entries)
    return lanes, entries


def test_decoders_are_let_go_by_close_and_by_a_device_that_fails(
    loop: asyncio.AbstractEventLoop, make_entry: MakeEntry
) -> None:
    for let_go in (Lanes.close, lambda lanes: lanes.fail_all(lambda: DeviceFailed("all of it"))):
        lanes, _ = full(make_entry)
        decoders = [run_in_thread(lanes.wait_for_room) for _ in range(3)]
        let_go(lanes)
        join(decoders)
        lanes.wait_for_room()  # nor does it stop anybody from then on
    loop.run_until_complete(asyncio.sleep(0))


def test_images_whose_clients_left_make_room(make_entry: MakeEntry) -> None:
    lanes, entries = full(make_entry)
    decoders = [run_in_thread(lanes.wait_for_room) for _ in range(3)]
    for entry in entries:
        entry.future.cancel()
    assert lanes.take(0.0) is None
    join(decoders)


def test_escalated_images_do_not_keep_decoders_waiting(make_entry: MakeEntry) -> None:
    lanes, _ = full(make_entry, slots=64)
    for batch in [taken(lanes.take(0.0)) for _ in range(tuning.DECODED_AHEAD)]:
        go_on(lanes, batch, batch.entries)
    join([run_in_thread(lanes.wait_for_room)])
