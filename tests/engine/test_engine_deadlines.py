"""Deadlines: refused at once where they cannot be met, else kept with the answer that is there."""

from __future__ import annotations

import time

import pytest

from service.engine.answer import Ask
from service.errors import DeadlinePassed
from service.inference.latency import LatencyTable
from tests.engine.serving import (
    Case,
    outcomes,
    serving,
    until,
)

pytestmark = pytest.mark.anyio


async def test_deadline_that_passed_on_arrival_is_refused_at_once(case: Case) -> None:
    async with serving(case) as server:
        server.gate(0)
        with pytest.raises(DeadlinePassed, match="deadline_ms is 1000; no answer is possible in that time") as refused:
            await server.classify(case.images[0].body, arrival=time.monotonic() - 5, deadline=1.0)
        assert (refused.value.field, refused.value.value) == ("deadline_ms", pytest.approx(1000))
        assert server.dropped() == {"deadline": 1}
        assert server.count("decode_seconds_count") == 0


async def test_deadline_that_what_is_queued_rules_out_is_refused_at_once(case: Case) -> None:
    slow = LatencyTable(({1: 50.0},) * case.depth)
    async with serving(case, 0.0, profile=slow, max_batch_size=1) as server:
        gate = server.gate(0)
        body = case.images[0].body
        tasks = await server.behind(gate, [body] * 4)
        for deadline in (49.0, 120.0):
            with pytest.raises(DeadlinePassed, match="no answer is possible in that time"):
                await server.classify(body, deadline=deadline)
        gate.open()
        await outcomes([*tasks, server.start(body, deadline=1000.0)])


@pytest.mark.parametrize(("deadline", "told"), [(0.0004, "0.4"), (1.5, "1500"), (0.0123456, "12.3456")])
async def test_refused_deadline_is_told_as_it_was_asked(case: Case, deadline: float, told: str) -> None:
    slow = LatencyTable(({1: 50.0},) * case.depth)
    async with serving(case, 0.0, profile=slow) as server:
        with pytest.raises(DeadlinePassed, match=f"deadline_ms is {told}; ") as refused:
            server.engine.check_in_time(Ask(arrival=time.monotonic(), deadline=deadline))
        assert refused.value.value == float(told)
        assert server.dropped() == {"deadline": 1}
        server.engine.check_in_time(Ask(arrival=time.monotonic(), deadline=1000.0))
        server.engine.check_in_time(Ask(arrival=time.monotonic()))


async def test_escalated_image_whose_next_stage_became_too_slow_is_answered_with_what_it_has(cascade: Case) -> None:
    async with serving(cascade, 1.0) as server:
        gate = server.gate(0)
        escalated, older = await server.escalate_behind(gate, cascade.images[0].body, deadline=1000.0)
        server.engine._pace.slowdown = 1e9
        gate.open()
        answer = await escalated
        assert (answer.stage, answer.reason, answer.degraded) == (0, "deadline", True)
        await older
        await server.all_slots_free()
        assert server.dropped() == {cascade.names[1]: 1}


async def test_machine_that_was_slow_once_does_not_refuse_deadlines_for_ever(case: Case) -> None:
    """Nothing else comes that would show that it no longer is."""
    async with serving(case, 0.0) as server:
        server.engine._pace.slowdown = server.engine._pace.decoding = 1e9
        answer = await server.classify(case.images[0].body, deadline=100.0)
        assert answer.stage == 0


async def test_deadline_before_the_first_stage_is_an_error(case: Case) -> None:
    async with serving(case) as server:
        gate = server.gate(0)
        first = server.start(case.images[0].body)
        await gate.arrival()
        with pytest.raises(DeadlinePassed, match="before any answer existed"):
            await server.classify(case.images[1].body, deadline=0.3)
        gate.open()
        await first
        await until(lambda: sum(server.dropped().values()) == 1)


async def test_deadline_while_waiting_for_the_next_stage_gives_the_answer_that_is_there(cascade: Case) -> None:
    async with serving(cascade, 1.0) as server:
        gate = server.gate(0)
        image = cascade.images[0]
        escalated, older = await server.escalate_behind(gate, image.body, deadline=1.5)
        answer = await escalated  # while the only worker stands before the gate
        assert (answer.stage, answer.reason, answer.degraded) == (0, "deadline", True)
        assert answer.mmacs == cascade.mmacs[0]
        assert answer.top_k[0].score == pytest.approx(image.outputs[0].max().item(), rel=1e-3)
        gate.open()
        await older
        assert server.dropped() == {cascade.names[1]: 1}
        assert server.answered(0, "deadline") == 1


async def test_deadline_during_a_later_stage_gives_the_answer_before_it(cascade: Case) -> None:
    async with serving(cascade, 1.0) as server:
        gate = server.gate(cascade.last)
        answer = await server.classify(cascade.images[0].body, deadline=1.5)
        assert (answer.stage, answer.reason, answer.degraded) == (cascade.last - 1, "deadline", True)
        assert len(answer.confidences) == cascade.last
        gate.open()
        await server.all_slots_free()


async def test_far_deadline_changes_nothing(case: Case) -> None:
    async with serving(case, 1.0) as server:
        answer = await server.classify(case.images[0].body, deadline=1000.0)
        assert (answer.stage, answer.degraded) == (case.last, False)
