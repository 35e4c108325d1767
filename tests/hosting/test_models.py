"""Several models serve beside each other, each by its name; what is replaced leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from service.errors import DeviceFailed, InvalidOption, NotFound
from service.store import ModelStore
from tests.engine.replicas import Held, serving_models, workers
from tests.engine.serving import TIMEOUT, until, without_collector

pytestmark = pytest.mark.anyio


async def test_first_model_is_the_default_and_others_have_their_names(store: ModelStore, jpeg: bytes) -> None:
    async with serving_models(store, "tiny/1", "other/1") as replica:
        assert replica.served() == ["tiny/1", "other/1"]
        answers = [await replica.classify(jpeg, name) for name in (None, "tiny", "other", "other/1")]
        assert [(answer.model, answer.threshold) for answer in answers] == [
            ("tiny", 0.65), ("tiny", 0.65), ("other", 0.8), ("other", 0.8),
        ]  # fmt: skip
        for unknown in ("tiny/2", "huge", ""):
            with pytest.raises(NotFound, match="served: tiny/1, other/1"):
                await replica.classify(jpeg, unknown)


async def test_image_is_answered_by_the_model_it_came_to(store: ModelStore, jpeg: bytes) -> None:
    async with serving_models(store) as replica:
        old = replica.held()
        old.free.clear()
        waiting = [asyncio.create_task(replica.classify(jpeg)) for _ in range(3)]
        await old.hold()
        await replica.switching.switch("other")
        assert (await replica.classify(jpeg)).model == "other"
        assert not any(task.done() for task in waiting)
        old.free.set()
        answers = await asyncio.wait_for(asyncio.gather(*waiting), TIMEOUT)
        assert {(answer.model, answer.threshold, answer.config_version) for answer in answers} == {("tiny", 0.65, 1)}


async def test_metrics_tell_what_the_table_predicts(store: ModelStore) -> None:
    async with serving_models(store) as replica:
        await replica.ask(0.5)
        calibration = replica.held().calibration
        assert calibration is not None
        effect = calibration.predict(0.5)
        assert replica.metric("expected_exit_rate", model="tiny/1") == effect.exit_rate
        assert replica.metric("promised_agreement", model="tiny/1") == effect.agreement_at_least
        await replica.switching.switch("other")
        assert replica.metric("expected_exit_rate", model="tiny/1") is None


async def test_what_was_replaced_leaves_nothing_behind_though_no_collector_runs(store: ModelStore, jpeg: bytes) -> None:
    others = workers()  # other tests' servers may still run
    async with without_collector(), serving_models(store) as replica:
        gone = weakref.ref(replica.held())
        its_own = workers() - others
        assert its_own
        await replica.classify(jpeg)
        assert replica.metric("threshold", model="tiny/1") == 0.65
        await replica.switching.switch("other")
        assert replica.metric("threshold", model="tiny/1") is None
        assert replica.metric("threshold", model="other/1") == 0.8
        await until(lambda: not its_own & workers())
        await until(lambda: gone() is None)


async def freed(*gone: weakref.ref[Any]) -> None:
    await until(lambda: all(each() is None for each in gone))


async def test_switch_collects_no_garbage_and_frees_what_was_replaced(store: ModelStore, jpeg: bytes) -> None:
    """A collection would stall every request: it walks all of PyTorch, in the event loop's thread."""
    collections: list[int] = []

    def collected(phase: str, told: dict[str, int]) -> None:
        if phase == "start":
            collections.append(told["generation"])

    async with without_collector(), serving_models(store) as replica:
        gc.callbacks.append(collected)
        try:
            for reference in ("other/1", "tiny/2", "other/1"):
                await replica.classify(jpeg)
                old = weakref.ref(replica.models.find(None)), weakref.ref(replica.held())
                frozen = gc.get_freeze_count()
                await replica.switching.switch(reference)
                await freed(*old)
                assert gc.get_freeze_count() == frozen
        finally:
            gc.callbacks.remove(collected)
    assert collections == []


async def test_queues_of_all_models_are_counted_together(store: ModelStore, jpeg: bytes) -> None:
    async with serving_models(store, "tiny/1", "other/1", max_batch_size=1) as replica:
        predictors = [replica.held("tiny"), replica.held("other")]
        tasks = []
        for predictor in predictors:
            predictor.free.clear()
            tasks += [asyncio.create_task(replica.classify(jpeg, predictor.spec.name)) for _ in range(3)]
            await predictor.hold()
        await until(lambda: replica.metric("queue_depth", stage="low") == 4)
        assert (replica.metric("queued_seconds", stage="low") or 0) > 0
        assert replica.models.queued_seconds() > 0
        for predictor in predictors:
            predictor.free.set()
        await asyncio.wait_for(asyncio.gather(*tasks), TIMEOUT)


@pytest.mark.parametrize("depth", [1, 3])
async def test_models_of_other_depths_serve_beside_each_other(mixed: ModelStore, jpeg: bytes, depth: int) -> None:
    async with serving_models(mixed, "deep2/1", f"deep{depth}/1") as replica:
        for each in (2, depth):
            answer = await replica.classify(jpeg, f"deep{each}")
            assert len(answer.stages) == each
        stages = {name for engine in replica.models for name in engine.backlog.depths()}
        assert stages == {"low", "high", "single" if depth == 1 else "middle"}
        for stage in stages:
            assert replica.metric("queue_depth", stage=stage) == replica.metric("queued_seconds", stage=stage) == 0


@pytest.mark.parametrize("depth", [1, 3])
async def test_model_is_replaced_by_one_of_another_depth(mixed: ModelStore, jpeg: bytes, depth: int) -> None:
    async with serving_models(mixed, "deep2/1") as replica:
        await replica.switching.switch(f"deep{depth}")
        assert len((await replica.classify(jpeg)).stages) == depth
        assert replica.metric("queue_depth", stage="low") == 0


async def test_model_that_the_device_cannot_run_is_not_prepared(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_models(store) as replica:
        monkeypatch.setattr(Held, "run", _fail)
        before = workers()
        with pytest.raises(DeviceFailed, match="tiny/2 cannot be warmed up: no stage 0"):
            await replica.models.prepare("tiny/2")
        with pytest.raises(InvalidOption, match="one that can be served"):
            await replica.models.prepare("broken")
        assert workers() == before


def _fail(predictor: Held, stage: int, *given: object) -> None:
    raise RuntimeError(f"no stage {stage} of {predictor.spec.reference} for {len(given)}")
