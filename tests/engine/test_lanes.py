"""What waits in the lanes, what a batch of it holds, and what becomes of slots, the dead and audits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from service.engine import tuning
from service.engine.answer import Reason
from service.engine.entry import Entry
from service.engine.lanes import Batch, Lanes
from service.engine.pick import Plan
from service.errors import DeviceFailed
from tests.engine.lanes_of import TABLE, MakeEntry, arrivals, entry_of, go_on, taken, timed, untimed


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Runs when a test says so: the futures of entries must belong to one."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def make_entry(loop: asyncio.AbstractEventLoop) -> MakeEntry:
    return lambda arrival: entry_of(loop, arrival)


def test_batch_holds_the_oldest_arrivals_in_order(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(3), slots=9)
    lanes.push([make_entry(arrival) for arrival in (4.0, 2.0, 5.0, 1.0)])
    assert arrivals(lanes.take(0.0)) == [1.0, 2.0, 4.0]
    assert arrivals(lanes.take(0.0)) == [5.0]
    assert lanes.take(0.0) is None


def test_images_of_one_request_keep_their_order(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(8), slots=9)
    entries = [make_entry(1.0) for _ in range(6)]
    lanes.push(entries)
    assert taken(lanes.take(0.0)).entries == entries


@pytest.mark.parametrize("depth", [2, 3])
def test_escalated_image_goes_before_what_arrived_behind_it(make_entry: MakeEntry, depth: int) -> None:
    lanes = Lanes(untimed(1, depth), slots=9)
    lanes.push([make_entry(1.0), make_entry(2.0)])
    batch = first = taken(lanes.take(0.0))
    for stage in range(1, depth):
        go_on(lanes, batch, batch.entries)
        batch = taken(lanes.take(0.0))
        assert batch == Batch(stage, "full", first.entries, first.slots)


def test_batch_of_the_first_stage_takes_a_slot_for_each_image_at_once(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(8), slots=3)
    lanes.push([make_entry(float(i)) for i in range(5)])
    first = taken(lanes.take(0.0))
    assert arrivals(first) == [0.0, 1.0, 2.0]
    assert sorted(first.slots) == [0, 1, 2]
    assert lanes.free_slots == 0
    assert lanes.take(0.0) is None
    lanes.release([first.slots[1]])
    second = taken(lanes.take(0.0))
    assert (arrivals(second), second.slots) == ([3.0], [first.slots[1]])


def test_escalation_keeps_the_slots_of_those_that_escalate_and_frees_the_others(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(4, 3), slots=4)
    lanes.push([make_entry(float(i)) for i in range(4)])
    first = taken(lanes.take(0.0))
    go_on(lanes, first, [first.entries[1], first.entries[3]])
    assert (lanes.free_slots, lanes.depths) == (2, (0, 2, 0))
    second = taken(lanes.take(0.0))
    assert second == Batch(1, "drained", [first.entries[1], first.entries[3]], [first.slots[1], first.slots[3]])
    go_on(lanes, second, second.entries[1:])
    assert (lanes.free_slots, lanes.depths) == (3, (0, 0, 1))


def test_share_that_escalates_follows_the_batches_of_each_stage_lately(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(4, 3), slots=400)
    shares = []
    for unsure in [2] * 60 + [0] * 60:
        lanes.push([make_entry(0.0) for _ in range(4)])
        first = taken(lanes.take(0.0))
        go_on(lanes, first, first.entries[:unsure])
        while (later := lanes.take(0.0)) is not None:
            go_on(lanes, later, [])
        shares.append(tuple(lanes.escalating))
    assert shares[59] == pytest.approx((0.5, 0.0, 0.0), abs=0.01)
    assert shares[119] == pytest.approx((0.0, 0.0, 0.0), abs=0.01)


def test_waiting_is_counted_from_when_an_image_came_into_its_lane(make_entry: MakeEntry) -> None:
    lanes = Lanes(timed(8, 8), slots=64)
    lanes.push([make_entry(0.0), *(make_entry(1000.0) for _ in range(8))])
    first = taken(lanes.take(1000.0))
    go_on(lanes, first, first.entries[:1], now=1000.0)
    lanes.push([make_entry(1001.0) for _ in range(7)])
    lanes.escalating[0] = 0.5
    assert taken(lanes.take(1001.0)).stage == 0  # old, but not long in the second lane
    lanes.push([make_entry(1002.0) for _ in range(8)])
    assert taken(lanes.take(1001.0 + tuning.OVERTAKING * TABLE.seconds(0, 8))).stage == 1


@pytest.mark.parametrize(("deadline", "stage"), [(None, 0), (1e6, 0), (20.0, 1)])
def test_nearest_deadline_of_the_escalated_images_counts(
    make_entry: MakeEntry, deadline: float | None, stage: int
) -> None:
    lanes = Lanes(timed(8, 8), slots=64)
    lanes.push([make_entry(0.0), make_entry(0.0)])
    first = taken(lanes.take(0.0))
    first.entries[0].deadline, first.entries[1].deadline = 1e9, deadline
    go_on(lanes, first, first.entries)
    lanes.push([make_entry(1.0) for _ in range(8)])
    lanes.escalating[0] = 0.5
    assert taken(lanes.take(0.0)).stage == stage


def test_oldest_arrival_and_depth_are_told_by_lane(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(8), slots=4)
    lanes.push([make_entry(7.0), make_entry(6.0)])
    assert (lanes.oldest(0), lanes.oldest(1), lanes.depths) == (6.0, None, (2, 0))


# the dead


def test_dead_images_are_dropped_wherever_they_stand(make_entry: MakeEntry) -> None:
    dropped: list[int] = []
    lanes = Lanes(untimed(8), slots=9, on_drop=dropped.append)
    entries = [make_entry(float(i)) for i in range(5)]
    lanes.push(entries)
    for dead in (0, 2, 4):
        entries[dead].future.cancel()
    batch = taken(lanes.take(0.0))
    assert (batch.stage, batch.reason, batch.entries) == (0, "drained", [entries[1], entries[3]])
    assert dropped == [0, 0, 0]
    assert (lanes.depths, lanes.free_slots) == ((0, 0), 7)


def test_dead_images_do_not_make_a_batch_look_full(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(2), slots=9)
    entries = [make_entry(float(i)) for i in range(3)]
    lanes.push(entries)
    entries[1].future.cancel()
    entries[2].future.cancel()
    batch = taken(lanes.take(0.0))
    assert (batch.reason, batch.entries) == ("drained", entries[:1])
    assert lanes.take(0.0) is None


class Fading(asyncio.Future[tuple[int, Reason] | None]):
    """Alive at the first look, dead at the second: its client leaves while a batch is made."""

    looks = 0

    def done(self) -> bool:
        self.looks += 1
        return self.looks > 1


def test_batch_is_never_empty_though_its_image_dies_while_it_is_made(
    loop: asyncio.AbstractEventLoop, make_entry: MakeEntry
) -> None:
    lanes = Lanes(untimed(8), slots=4)
    entry = make_entry(0.0)
    entry.future = Fading(loop=loop)
    lanes.push([entry])
    batch = lanes.take(0.0)
    assert batch is None or batch.entries
    assert lanes.free_slots == 4 - len(batch.entries if batch else [])


@pytest.mark.parametrize("depth", [2, 3])
def test_escalated_image_that_dies_gives_its_slot_to_the_next(make_entry: MakeEntry, depth: int) -> None:
    dropped: list[int] = []
    lanes = Lanes(untimed(1, depth), slots=1, on_drop=dropped.append)
    lanes.push([make_entry(0.0), make_entry(1.0)])
    for _ in range(depth - 1):
        batch = taken(lanes.take(0.0))
        go_on(lanes, batch, batch.entries)
    batch.entries[0].future.cancel()
    assert arrivals(lanes.take(0.0)) == [1.0]
    assert dropped == [depth - 1]


# nothing runs any more


def test_all_that_waits_fails_each_with_its_own_error_and_so_does_what_comes(
    loop: asyncio.AbstractEventLoop, make_entry: MakeEntry
) -> None:
    lanes = Lanes(untimed(2, 3), slots=4)
    entries = [make_entry(float(i)) for i in range(5)]
    lanes.push(entries[:4])
    first = taken(lanes.take(0.0))
    go_on(lanes, first, first.entries)
    lanes.fail_all(lambda: DeviceFailed("the device failed"))
    lanes.push(entries[4:])
    loop.run_until_complete(asyncio.sleep(0))
    failures = [entry.failure for entry in entries]
    assert [type(failure) for failure in failures] == [DeviceFailed] * 5
    assert len(set(map(id, failures))) == 5
    assert (lanes.depths, lanes.free_slots) == ((0, 0, 0), 4)
    lanes.wait_for_room()  # nor does it keep decoders waiting
    lanes.resume()
    lanes.push([make_entry(9.0)])
    assert arrivals(lanes.take(0.0)) == [9.0]


# audits


def audited(lanes: Lanes, make_entry: MakeEntry, count: int, stage: int = 1) -> list[Entry]:
    """Images that exited, were answered, and are sent to be audited; each holds a slot until it is refused."""
    lanes.push([make_entry(0.0) for _ in range(count)])
    first = taken(lanes.take(0.0))
    assert len(first.entries) == count
    accepted = []
    for entry, slot in zip(first.entries, first.slots, strict=True):
        entry.slot = slot
        entry.resolve(0, "confident")
        if lanes.audit(stage, entry):
            accepted.append(entry)
        else:
            lanes.release([slot])
    return accepted


@pytest.mark.parametrize("backlog", [0, 3])
def test_audits_that_wait_are_bounded(make_entry: MakeEntry, backlog: int) -> None:
    lanes = Lanes(untimed(8), slots=9, audit_backlog=backlog)
    assert len(audited(lanes, make_entry, 5)) == backlog
    assert lanes.free_slots == 9 - backlog


def test_audits_run_when_nothing_else_waits_the_furthest_first(make_entry: MakeEntry) -> None:
    lanes = Lanes(Plan((8, 4, 2)), slots=9, audit_backlog=9)
    middle, last = audited(lanes, make_entry, 3, stage=1), audited(lanes, make_entry, 3, stage=2)
    batches = [taken(lanes.take(0.0)) for _ in range(3)]
    assert [(batch.stage, batch.entries) for batch in batches] == [(2, last[:2]), (2, last[2:]), (1, middle)]
    assert all(batch.is_audit for batch in batches)
    assert [batch.slots for batch in batches] == [[entry.slot for entry in batch.entries] for batch in batches]
    assert lanes.take(0.0) is None


def test_audits_do_not_hold_up_what_somebody_waits_for(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(8), slots=9, audit_backlog=9)
    audited(lanes, make_entry, 2)
    lanes.spent(1.0, is_audit=False)
    lanes.spent(1.0, is_audit=True)  # more than their share
    lanes.push([make_entry(1.0)])
    assert [taken(lanes.take(0.0)).is_audit for _ in range(2)] == [False, True]


def test_audits_run_when_no_slot_is_left_but_theirs(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(8), slots=4, audit_backlog=4)
    audited(lanes, make_entry, 4)
    lanes.spent(1.0, is_audit=True)
    lanes.push([make_entry(1.0)])
    batch = taken(lanes.take(0.0))
    assert batch.is_audit
    lanes.release(batch.slots)
    assert not taken(lanes.take(0.0)).is_audit


def test_audits_are_given_up_on_close_with_their_slots(make_entry: MakeEntry) -> None:
    lanes = Lanes(untimed(8), slots=9, audit_backlog=9)
    audited(lanes, make_entry, 5)
    lanes.close()
    assert lanes.free_slots == 9
    assert audited(lanes, make_entry, 5) == []
    assert lanes.wait() is None


@pytest.mark.parametrize(("size", "escalating"), [(4, 0.35), (32, 0.0)])
def test_audits_get_their_share_of_a_device_that_always_has_work_and_no_more(
    make_entry: MakeEntry, size: int, escalating: float
) -> None:
    chance = random.Random(0)
    lanes = Lanes(timed(size, 8), slots=128, audit_backlog=16)
    now = on_audits = 0.0
    while now < 100:
        lanes.push([make_entry(now) for _ in range(64 - lanes.depths[0])])
        batch = taken(lanes.take(now))
        seconds = TABLE.seconds(batch.stage, len(batch.entries)) / 1000
        now += seconds
        on_audits += seconds if batch.is_audit else 0.0
        lanes.spent(seconds, batch.is_audit)
        if batch.stage:
            lanes.release(batch.slots)
            continue
        unsure = [entry for entry in batch.entries if chance.random() < escalating]
        unused = []
        for entry, slot in zip(batch.entries, batch.slots, strict=True):
            entry.slot, entry.enqueued = slot, now
            if entry not in unsure and not lanes.audit(1, entry):
                unused.append(slot)
        lanes.escalate(0, unsure, len(batch.entries), unused)
    assert lanes.seconds == pytest.approx(now - on_audits)
    one_batch = TABLE.seconds(1, 8) / 1000
    assert on_audits > 10 * one_batch  # else this proves little
    assert on_audits == pytest.approx(tuning.AUDIT_SHARE * now, rel=0.1, abs=one_batch)
