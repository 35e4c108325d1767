"""What a worker does with a batch, in the test's own thread: one after another, and then the event loop's turn."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry
from torch import Tensor

from service.engine import batch_decoder
from service.engine.answer import Reason
from service.engine.batch_decoder import BatchDecoder
from service.engine.decide import Policy
from service.engine.entry import Entry
from service.engine.executor import Executor
from service.engine.features import FeaturePool
from service.engine.lanes import Lanes
from service.engine.pace import Pace
from service.engine.pick import Plan
from service.engine.recent import Recent
from service.errors import DeadlinePassed, DeviceFailed
from service.images.decode import decode
from service.images.sizes import in_sizes
from service.inference.latency import LatencyTable
from service.metrics import Metrics
from tests.engine.serving import WHITE, Case, load, nothing, refusing_white_at

pytestmark = pytest.mark.anyio

FAR = 1e6  # seconds: a deadline that no test reaches
SLOTS = 8

Outcome = tuple[int, Reason] | Exception


class Bench:
    """An executor and what it works on; whoever calls ``run`` is its only worker."""

    def __init__(self, case: Case, audit_probability: float = 0.0, backlog: int = 4) -> None:
        self.case = case
        self.predictor = load(case)
        self.registry = CollectorRegistry()
        sizes = (4,) * case.depth
        self.pace = Pace(LatencyTable(({1: 0.001},) * case.depth), sizes)
        self.lanes = Lanes(Plan(sizes, self.pace.predicted, self.pace.soonest), SLOTS, backlog)
        self.recent = Recent()
        policy = Policy(case.last, audit_probability=audit_probability)
        self.executor = Executor(
            self.lanes,
            self.predictor,
            FeaturePool(SLOTS),
            self.pace,
            self.recent,
            Metrics(self.registry),
            policy,
        )

    def entries(self, bodies: Iterable[bytes], threshold: float = 1.0, deadline: float | None = None) -> list[Entry]:
        loop, now, spec = asyncio.get_running_loop(), time.monotonic(), self.predictor.spec
        return [
            Entry(
                threshold, 1, 1, now, deadline, loop, loop.create_future(),
                pixels=in_sizes(decode(body, spec.preprocessing), spec.resolutions), enqueued=now,
            )
            for body in bodies
        ]  # fmt: skip

    async def run(self, entries: list[Entry]) -> list[Outcome]:
        """Until nothing is left; raises what the device raises if it can run nothing any more."""
        self.lanes.push(entries)
        try:
            while (batch := self.lanes.take(time.monotonic())) is not None:
                self.executor.run(batch)
        finally:
            await asyncio.sleep(0)
            assert self.lanes.free_slots == SLOTS
            assert all(entry.is_dead for entry in entries)
        return [await _outcome(entry) for entry in entries]

    async def run_three(self, threshold: float = 1.0, deadline: float | None = None) -> list[Outcome]:
        return await self.run(self.entries([image.body for image in self.case.images[:3]], threshold, deadline))

    def lower(self, threshold: float) -> None:
        self.executor.policy = Policy(self.case.last, threshold, self.executor.policy.audit_probability)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"lowfirst_{name}", labels) or 0.0


async def _outcome(entry: Entry) -> Outcome:
    try:
        return await entry.answered()
    except (DeviceFailed, DeadlinePassed) as error:
        return error


def soon() -> float:
    return time.monotonic() + FAR


async def test_unsure_images_escalate_and_sure_ones_exit(case: Case) -> None:
    bench = Bench(case)
    assert await bench.run_three(0.0) == [(0, "confident" if case.last else "only")] * 3
    assert await bench.run_three(1.0) == [(case.last, "escalated" if case.last else "only")] * 3
    assert await bench.run_three(case.middle) == [
        (image.end(case.middle), "confident" if image.end(case.middle) < case.last else "escalated")
        if case.last else (0, "only")
        for image in case.images[:3]
    ]  # fmt: skip


# deadlines


@pytest.mark.parametrize("stage", [1, 2])
async def test_escalation_that_would_miss_its_deadline_is_not_begun(cascade: Case, stage: int) -> None:
    stage = min(stage, cascade.last)
    bench = Bench(cascade)
    bench.pace.table = LatencyTable(tuple({1: 4 * FAR if each == stage else 1e-3} for each in range(cascade.depth)))
    assert await bench.run_three(1.0, soon()) == [(stage - 1, "deadline")] * 3
    assert await bench.run_three(0.0, soon()) == [(0, "confident")] * 3  # no sure answer is degraded by it
    assert bench.count("batches_total", stage=cascade.names[stage], reason="drained") == 0


async def test_machine_that_became_slower_rules_out_what_its_table_would_allow(cascade: Case) -> None:
    bench = Bench(cascade)
    bench.pace.table = LatencyTable(({1: 1e-3}, *({1: FAR / 4},) * cascade.last))
    assert await bench.run_three(1.0, soon()) == [(cascade.last, "escalated")] * 3
    bench.pace.slowdown = 1000.0
    assert await bench.run_three(1.0, soon()) == [(0, "deadline")] * 3


async def test_past_overload_does_not_rule_out_escalations_for_ever(cascade: Case) -> None:
    bench = Bench(cascade)
    bench.pace.slowdown = 1e4 * FAR
    for _ in range(200):
        outcomes = await bench.run_three(1.0, soon())
        if outcomes[-1] == (cascade.last, "escalated"):
            return
    pytest.fail("600 images were degraded, with nothing else to do")


async def test_images_too_late_for_their_first_stage_fail_before_they_cost_anything(case: Case) -> None:
    bench = Bench(case)
    bench.pace.table = LatencyTable(({1: FAR},) * case.depth)
    late = bench.entries([image.body for image in case.images[:2]], deadline=soon() - FAR / 2)
    in_time = bench.entries([case.images[2].body], deadline=soon() + FAR * 9)
    *errors, answer = await bench.run(late + in_time)
    assert [type(error) for error in errors] == [DeadlinePassed] * 2
    assert errors[0] is not errors[1]
    assert isinstance(answer, tuple)
    assert bench.count("batch_size_sum", stage=case.names[0]) == 1


async def test_images_that_decoding_made_too_late_are_not_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(case)
    late, in_time = bench.entries([image.body for image in case.images[:2]], threshold=0.0)
    late.deadline = soon()

    def decode_slowly(_: BatchDecoder, entries: Sequence[Entry]) -> list[Entry]:
        bench.pace.table = LatencyTable(({1: 2 * FAR},) * case.depth)
        return list(entries)

    monkeypatch.setattr(BatchDecoder, "_decoded", decode_slowly)
    error, answer = await bench.run([late, in_time])
    assert isinstance(error, DeadlinePassed)
    assert isinstance(answer, tuple)
    assert bench.count("batch_size_sum", stage=case.names[0]) == 1
    assert bench.count("dropped_total", point="deadline") == 1


async def test_slow_decoding_of_the_past_does_not_drop_images_for_ever(case: Case) -> None:
    bench = Bench(case)
    bench.pace.decoding = 4 * FAR
    for _ in range(200):
        entries = bench.entries([image.body for image in case.images[:3]], 0.0, soon())
        for entry, image in zip(entries, case.images, strict=False):
            entry.pixels, entry.body = (), image.body
        outcomes = await bench.run(entries)
        assert isinstance(outcomes[0], tuple)  # the oldest is always tried
        if all(isinstance(outcome, tuple) for outcome in outcomes):
            return
    pytest.fail("400 images were dropped, with nothing else to do")


# overload


async def test_image_that_exits_by_a_lowered_threshold_says_so_at_every_stage(cascade: Case) -> None:
    """Lowered already when it escalated from the first stage: what was asked is no less for that."""
    at_last = cascade.last - 1
    image = next(
        image for image in cascade.images if image.end(max(image.confidences[:at_last], default=0.0)) == at_last
    )
    bench = Bench(cascade)
    lowered = max(image.confidences[:at_last], default=0.0)
    bench.lower(lowered)
    (entry,) = bench.entries([image.body])
    assert await bench.run([entry]) == [(at_last, "brownout")]
    assert (entry.threshold, entry.compared_with) == (1.0, lowered)


async def test_image_escalates_once_the_overload_is_over(cases: dict[int, Case]) -> None:
    case = cases[3]
    image = next(image for image in case.images if image.end(image.confidences[0]) == 1)
    bench = Bench(case)
    bench.lower(image.confidences[0])
    (entry,) = bench.entries([image.body])
    bench.predictor.before = lambda stage, images: bench.lower(math.inf) if stage == 1 else None
    assert await bench.run([entry]) == [(2, "escalated")]
    assert entry.compared_with == 1.0


async def test_image_that_is_sure_anyway_does_not_blame_the_brown_out(cascade: Case) -> None:
    bench = Bench(cascade)
    bench.lower(0.0)
    assert await bench.run_three(0.0) == [(0, "confident")] * 3


# audits


def audited(bench: Bench) -> int:
    return bench.recent.disagreement_at(1e-9)[1]


async def test_images_that_exit_are_audited_by_all_remaining_stages(cascade: Case) -> None:
    bench = Bench(cascade, audit_probability=1.0)
    assert await bench.run_three(0.0) == [(0, "confident")] * 3
    assert audited(bench) == 3
    computed = 3 * sum(round(mmacs * 1e6) for mmacs in cascade.mmacs[1:])
    assert bench.count("multiply_adds_total", model="tiny/1", stage="audit") == computed
    assert bench.count("multiply_adds_total", model="tiny/1", stage=cascade.names[-1]) == 0


async def test_audits_beyond_the_backlog_are_skipped_and_counted(cascade: Case) -> None:
    bench = Bench(cascade, audit_probability=1.0, backlog=2)
    await bench.run_three(0.0)
    assert (audited(bench), bench.count("audits_skipped_total")) == (2, 1)


async def test_degraded_and_escalated_images_are_not_audited(cascade: Case) -> None:
    bench = Bench(cascade, audit_probability=1.0)
    await bench.run_three(1.0)
    bench.pace.table = LatencyTable(({1: 1e-3}, *({1: 4 * FAR},) * cascade.last))
    await bench.run_three(1.0, soon())
    bench.lower(0.0)
    await bench.run_three(1.0)
    assert audited(bench) == 0


async def test_audit_under_overload_is_of_images_above_the_threshold_that_was_asked(cascade: Case) -> None:
    bench = Bench(cascade, audit_probability=1.0)
    bench.lower(0.0)
    asked = cascade.images[0].confidences[0] - 1e-3
    await bench.run(bench.entries([cascade.images[0].body], asked))
    assert bench.recent.disagreement_at(asked)[1] == 1
    assert bench.recent.disagreement_at(asked - 1e-6)[1] == 0


# errors


@pytest.mark.parametrize("stage", range(3))
async def test_only_the_image_at_fault_fails(case: Case, stage: int) -> None:
    stage = min(stage, case.last)
    bench = Bench(case)
    bench.predictor.before = refusing_white_at(stage)
    outcomes = await bench.run(bench.entries([case.images[0].body, WHITE, case.images[1].body]))
    assert str(outcomes[1]) == f"the {case.names[stage]} stage failed on this image"
    assert [outcomes[0], outcomes[2]] == [(case.last, "escalated" if case.last else "only")] * 2


async def test_failed_batch_is_counted_once(case: Case) -> None:
    bench = Bench(case)

    def refuse_many(stage: int, images: Tensor) -> None:
        if len(images) > 1:
            raise ValueError(f"too many at stage {stage}")

    bench.predictor.before = refuse_many
    await bench.run_three(1.0)
    for name, each in zip(case.names, case.mmacs, strict=True):
        assert bench.count("queue_wait_seconds_count", stage=name) == 3
        assert bench.count("batches_total", stage=name, reason="drained") == 1
        assert bench.count("multiply_adds_total", model="tiny/1", stage=name) == 3 * round(each * 1e6)


@pytest.mark.parametrize("stage", range(3))
async def test_device_that_fails_answers_what_it_had_and_raises(case: Case, stage: int) -> None:
    stage = min(stage, case.last)
    bench = Bench(case)
    bench.predictor.before = lambda now, images: _refuse(lambda: now == stage)
    entries = bench.entries([image.body for image in case.images[:3]])
    with pytest.raises(ValueError, match="refused"):
        await bench.run(entries)
    errors = [await _outcome(entry) for entry in entries]
    assert [type(error) for error in errors] == [DeviceFailed] * 3
    assert len(set(map(id, errors))) == 3
    bench.predictor.before = nothing
    assert await bench.run_three(0.0) == [(0, "confident" if case.last else "only")] * 3


async def test_device_that_breaks_in_the_middle_of_a_batch_still_answers_all_of_it(cascade: Case) -> None:
    bench = Bench(cascade)
    runs = itertools.count()
    # the whole batch, then a probe that works, then one image, and from there on nothing
    bench.predictor.before = lambda stage, images: _refuse(lambda: len(images) > 1 or (stage == 0 and next(runs) > 1))
    entries = bench.entries([image.body for image in cascade.images[:3]], 0.0)
    with pytest.raises(ValueError, match="refused"):
        await bench.run(entries)
    outcomes = [await _outcome(entry) for entry in entries]
    assert outcomes[0] == (0, "confident")
    assert [type(error) for error in outcomes[1:]] == [DeviceFailed] * 2


def _refuse(is_refused: Callable[[], bool]) -> None:
    if is_refused():
        raise ValueError("refused")


# what batches teach


async def test_batches_teach_how_much_slower_the_machine_is_than_measured(case: Case) -> None:
    bench = Bench(case)
    bench.pace.table = LatencyTable(({1: 1e-9},) * case.depth)
    await bench.run_three(1.0)
    assert bench.pace.slowdown > 10


async def test_single_scale_network_is_reckoned_in_batches_as_large_as_the_first_stages(case: Case) -> None:
    bench = Bench(case)
    bench.pace.table = LatencyTable(bench.pace.table.stages, {1: 0.004, 3: 0.006})
    await bench.run_three(1.0)  # together
    assert bench.lanes.single_scale_seconds == pytest.approx(0.006)
    for image in case.images[:3]:
        await bench.run(bench.entries([image.body]))
    assert bench.lanes.single_scale_seconds == pytest.approx(0.018)
    assert bench.count("single_scale_compute_seconds_total", model="tiny/1") == pytest.approx(0.018)


async def test_audits_take_none_of_the_single_scale_networks_time(cascade: Case) -> None:
    bench = Bench(cascade, audit_probability=1.0)
    bench.pace.table = LatencyTable(bench.pace.table.stages, {1: 0.004, 3: 0.006})
    await bench.run_three(0.0)
    assert bench.count("audits_total", model="tiny/1") == 3
    assert bench.lanes.single_scale_seconds == pytest.approx(0.006)


async def test_decoding_counts_as_time_that_the_first_stage_takes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(case)
    entries = bench.entries([image.body for image in case.images[:3]], 0.0)
    for entry, image in zip(entries, case.images, strict=False):
        entry.pixels, entry.body = (), image.body
    ticks = itertools.count(time.monotonic(), 0.5)
    monkeypatch.setattr(batch_decoder, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    await bench.run(entries)
    assert bench.pace.decoding > 0.01
    assert all(entry.body is None for entry in entries)
