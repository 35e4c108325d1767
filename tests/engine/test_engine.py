"""The way of one image, whatever happens on it, with one, two and three stages."""

from __future__ import annotations

import gc

import pytest

from service.engine.answer import Answer
from service.errors import DeviceFailed, InvalidImage
from tests.engine.serving import (
    WHITE,
    Case,
    Gate,
    assert_answers,
    entries_alive,
    leave,
    one_after_another,
    outcomes,
    refusing_white_at,
    serving,
    until,
)

pytestmark = pytest.mark.anyio


# answers


async def test_answer_is_that_of_decode_predictor_and_exit_rule(case: Case) -> None:
    async with serving(case, case.middle) as server:
        for image in case.images[:12]:
            answer = await server.classify(image.body)
            assert_answers(answer, case, image, case.middle)
            best = int(image.outputs[answer.stage].argmax())
            assert answer.top_k[0].label == server.engine.spec.classes[best]
            assert (answer.threshold, answer.stages) == (case.middle, case.names)
            assert (answer.model, answer.version, answer.config_version) == ("tiny", 1, 1)
            assert len(answer.timing.stages) == answer.stage + 1


async def test_threshold_zero_lets_every_image_exit_and_one_none(case: Case) -> None:
    for threshold, stage, reason in ((0.0, 0, "confident"), (1.0, case.last, "escalated")):
        async with serving(case, threshold) as server:
            answers = [await server.classify(image.body) for image in case.images[:6]]
            expected = (stage, reason if case.last else "only", sum(case.mmacs[: stage + 1]))
            assert {(answer.stage, answer.reason, answer.mmacs) for answer in answers} == {expected}


async def test_request_may_bring_its_own_threshold(cascade: Case) -> None:
    async with serving(cascade, 1.0) as server:
        answer = await server.classify(cascade.images[0].body, threshold=0.0)
        assert (answer.stage, answer.threshold) == (0, 0.0)


async def test_change_of_threshold_holds_from_the_next_image_on(cascade: Case) -> None:
    async with serving(cascade, 1.0) as server:
        gate = server.gate(0)
        before = server.start(cascade.images[0].body)
        await gate.arrival()
        await server.change_threshold(0.0)
        gate.open()
        after = await server.classify(cascade.images[0].body)
        assert ((await before).stage, (await before).config_version) == (cascade.last, 1)
        assert (after.stage, after.config_version) == (0, 2)


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (3, 3), (99, 4)])
async def test_top_k_is_ordered_and_at_most_the_classes(two: Case, asked: int, given: int) -> None:
    async with serving(two) as server:
        answer = await server.classify(two.images[0].body, top_k=asked)
        scores = [ranked.score for ranked in answer.top_k]
        assert len(scores) == given
        assert scores == sorted(scores, reverse=True)


async def test_what_each_stage_says_is_told_where_it_is_asked_for(case: Case) -> None:
    async with serving(case, case.middle) as server:
        for image in case.images[:6]:
            answer = await server.classify(image.body, passes=True)
            assert answer.passes is not None
            assert tuple(answer.passes) == case.names
            assert answer.passes[answer.exit] == answer.top_k
            for stage, said in enumerate(answer.passes.values()):
                expected = int(image.outputs[stage].argmax()) if stage <= answer.stage else None
                assert (said and said[0].index) == expected


async def test_a_hundred_images_at_once_each_get_their_own_answer(case: Case) -> None:
    images = [case.images[i * 7 % len(case.images)] for i in range(100)]
    async with serving(case, case.middle, workers=3, feature_slots=5) as server:
        answers = await outcomes([server.start(image.body) for image in images])
        for answer, image in zip(answers, images, strict=True):
            assert_answers(answer, case, image, case.middle)


async def test_metrics_tell_what_happened(case: Case) -> None:
    async with serving(case, case.middle) as server:
        images = case.images[:20]
        answers = [await server.classify(image.body) for image in images]
        ends = [image.end(case.middle) for image in images]
        for stage, name in enumerate(case.names):
            ran = sum(end >= stage for end in ends)
            reason = "confident" if stage < case.last else "escalated" if stage else "only"
            assert server.answered(stage, reason) == ends.count(stage)
            computed = ran * round(case.mmacs[stage] * 1e6)
            assert server.count("multiply_adds_total", model="tiny/1", stage=name) == computed
            assert server.count("batch_size_sum", stage=name) == ran
        assert server.count("decode_seconds_count") == 20
        summary = server.engine.recent.summary()
        assert (summary.images, summary.exit_rate) == (20, sum(end < case.last for end in ends) / 20)
        assert summary.mean_mmacs == pytest.approx(sum(answer.mmacs for answer in answers) / 20)


async def test_images_that_wait_together_run_together(case: Case) -> None:
    async with serving(case, 0.0) as server:
        gate = server.gate(0)
        tasks = await server.behind(gate, [image.body for image in case.images[:7]])
        assert server.engine.backlog.age(0) > 0
        gate.open()
        await outcomes(tasks)
        assert gate.sizes == [1, 4, 2]


# errors


async def test_undecodable_image_fails_and_the_next_is_answered(two: Case) -> None:
    async with serving(two) as server:
        for body in (b"", b"no image", two.images[0].body[:60]):
            with pytest.raises(InvalidImage):
                await server.classify(body)
        assert_answers(await server.classify(two.images[0].body), two, two.images[0], 0.5)


@pytest.mark.parametrize("stage", range(3))
async def test_image_that_breaks_its_batch_fails_alone(case: Case, stage: int) -> None:
    stage = min(stage, case.last)
    async with serving(case, 1.0) as server:
        gate = Gate(0)
        server.predictor.before = one_after_another(gate, refusing_white_at(stage))
        images = case.images
        tasks = await server.behind(gate, [images[0].body, images[1].body, WHITE, images[2].body])
        gate.open()
        first, good, poisonous, fine = await outcomes(tasks)
        assert isinstance(poisonous, DeviceFailed)
        assert "white" not in str(poisonous)
        for answer, image in ((first, images[0]), (good, images[1]), (fine, images[2])):
            assert_answers(answer, case, image, 1.0)
        assert gate.sizes[:2] == [1, 3]
        await server.all_slots_free()


# clients that leave


async def test_client_that_leaves_while_its_batch_runs_harms_nobody(cascade: Case) -> None:
    async with serving(cascade, 1.0) as server:
        gate = server.gate(0)
        tasks = await server.behind(gate, [image.body for image in cascade.images[:4]])
        gate.let_one_through()
        await gate.arrival()
        await leave(tasks.pop(2))
        gate.open()
        answers = await outcomes(tasks)
        for answer, which in zip(answers, (0, 1, 3), strict=True):
            assert_answers(answer, cascade, cascade.images[which], 1.0)
        assert server.dropped() == {"escalation": 1}


async def test_client_that_leaves_during_the_last_stage_gets_nothing(case: Case) -> None:
    async with serving(case, 1.0) as server:
        gate = server.gate(case.last)
        task = server.start(case.images[0].body)
        await gate.arrival()
        await leave(task)
        gate.open()
        await until(lambda: server.dropped() == {"answer": 1})
        await server.all_slots_free()
        assert server.engine.recent.summary().images == 0


async def test_image_of_a_client_that_left_is_dropped_before_its_first_stage(case: Case) -> None:
    async with serving(case, 0.0) as server:
        gate = server.gate(0)
        tasks = await server.behind(gate, [image.body for image in case.images[:4]])
        await leave(tasks.pop(2))
        gate.open()
        assert all(isinstance(answer, Answer) for answer in await outcomes(tasks))
        assert gate.sizes == [1, 2]
        assert server.dropped() == {case.names[0]: 1}


async def test_image_of_a_client_that_left_is_dropped_before_its_next_stage(cascade: Case) -> None:
    async with serving(cascade, 1.0) as server:
        gate = server.gate(0)
        escalated, older = await server.escalate_behind(gate, cascade.images[0].body)
        await leave(escalated)
        gate.open()
        await older
        assert server.dropped() == {cascade.names[1]: 1}
        assert server.count("batch_size_sum", stage=cascade.names[1]) == 1


async def test_many_clients_that_leave_at_once_leave_nothing_behind(cascade: Case) -> None:
    async with serving(cascade, 1.0, workers=2) as server:
        gate = server.gate(0)
        tasks = [server.start(image.body) for image in cascade.images]
        await gate.arrival()
        await leave(*tasks)
        tasks.clear()
        gate.open()
        image = cascade.images[0]
        assert_answers(await server.classify(image.body), cascade, image, 1.0)
        await until(lambda: sum(server.dropped().values()) == len(cascade.images))
        await server.all_slots_free()
        await until(lambda: gc.collect() >= 0 and not entries_alive())
