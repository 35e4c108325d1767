"""A model is tried beside the one that serves: which images it gets, what is counted, how it ends."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from service.errors import ConfigConflict, Conflict, InvalidOption, NotFound, StoreUnavailable
from service.hosting.guard import Guard
from service.hosting.trials import Trials, Wish
from service.networks.cascade import Carried
from service.state.base import RuntimeConfig, ThresholdConfig, place
from service.store import ModelStore
from tests.engine.replicas import Held, Replica, serving_models, workers
from tests.engine.serving import until, without_collector

pytestmark = pytest.mark.anyio

SHARE = 0.5


@pytest.fixture(scope="module")
def trial_models(trial_store: Path) -> ModelStore:
    return ModelStore(trial_store)


@pytest.fixture(scope="module")
def images(make_jpeg: Callable[[int], bytes]) -> list[bytes]:
    """Some of the share, some not."""
    made = [make_jpeg(seed) for seed in range(24)]
    assert 6 < sum(place(image) < SHARE for image in made) < 18
    return made


def canary(version: int, share: float = SHARE, most: float | None = None) -> Wish:
    return Wish(f"tiny/{version}", share, None, most, most is not None)


def shadow(version: int, most: float | None = None) -> Wish:
    return Wish(f"tiny/{version}", None, True, most, most is not None)


async def answered_by(replica: Replica, images: list[bytes], **ask: bool) -> list[int]:
    return [(await replica.ask_for(image, **ask)).version for image in images]


async def test_a_canary_answers_its_share_by_the_hash_and_both_run_it(
    trial_models: ModelStore, images: list[bytes]
) -> None:
    async with serving_models(trial_models, feature_slots=1024) as replica:
        await replica.trials.change(canary(2))
        expected = [2 if place(image) < SHARE else 1 for image in images]
        assert await answered_by(replica, images) == expected
        assert await answered_by(replica, images) == expected
        counts = await replica.compared(2 * expected.count(2))
        assert (counts.images, counts.disagreements) == (2 * expected.count(2), 0)
        assert counts.served.exited == counts.tried.exited
        assert counts.served.mmacs == counts.tried.mmacs
        assert counts.tried.computed == counts.images  # it answered no others
        assert counts.served.computed == 2 * len(images)
        assert replica.metric("comparisons_total", model="tiny/2") == counts.images
        assert replica.metric("trial_share", model="tiny/2", kind="canary") == SHARE
        assert replica.metric("trial_share", model="tiny/2", kind="shadow") == 0


async def test_a_request_that_names_the_version_is_answered_by_it(
    trial_models: ModelStore, images: list[bytes]
) -> None:
    async with serving_models(trial_models) as replica:
        await replica.trials.change(canary(2, 1.0))
        assert await answered_by(replica, images[:3], names_version=True) == [1, 1, 1]
        assert await answered_by(replica, images[:3]) == [2, 2, 2]


async def test_a_shadow_is_seen_by_no_client_and_its_disagreement_is_counted(
    trial_models: ModelStore, images: list[bytes]
) -> None:
    async with serving_models(trial_models, feature_slots=1024) as replica:
        before = [await replica.ask_for(image) for image in images]
        await replica.trials.change(shadow(3))
        after = [await replica.ask_for(image) for image in images]
        assert [each.top_k for each in after] == [each.top_k for each in before]
        assert {each.version for each in after} == {1}
        counts = await replica.compared(len(images))
        assert (counts.disagreements, counts.agreement) == (len(images), 0.0)
        assert replica.metric("comparison_disagreements_total", model="tiny/3") == len(images)
        assert not replica.metric("images_total", model="tiny/3", exit="high", reason="escalated")


async def test_the_guard_cancels_what_differs_and_tells_why(trial_models: ModelStore, images: list[bytes]) -> None:
    async with serving_models(trial_models, feature_slots=1024) as replica:
        await replica.trials.change(canary(3, 1.0, most=0.02))
        version = replica.config.current.version
        await replica.ask_for(images[0])
        await until(lambda: replica.config.current.trial is None)
        ended = replica.config.current.ended
        assert ended is not None
        assert (ended.name, ended.version, ended.beside, ended.outcome) == ("tiny", 3, "tiny", "disagreement")
        assert "1 of 1 images differ, a share of at least 0.0500 (95 %); 0.02 is allowed" in ended.why
        assert replica.config.current.version == version + 1
        assert await answered_by(replica, images[:3]) == [1, 1, 1]
        assert replica.metric("trial_cancelled_timestamp_seconds", model="tiny/1") == ended.at


async def test_the_guard_leaves_what_agrees(trial_models: ModelStore, images: list[bytes]) -> None:
    async with serving_models(trial_models, feature_slots=1024) as replica:
        await replica.trials.change(canary(2, 1.0, most=0.0))
        await answered_by(replica, images)
        await replica.compared(len(images))
        await Guard(replica.trials).look()
        assert replica.config.current.trial is not None


class Failing(Held):
    """Fails on every image of a client, though it warms up."""

    is_failing = False

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        logits, handed_on = super().run(stage, images, carried)
        return (torch.full_like(logits, torch.nan) if self.is_failing else logits), handed_on


@pytest.mark.parametrize("is_shadow", [False, True])
async def test_errors_of_what_is_tried_reach_no_client_and_cancel_it(
    trial_models: ModelStore, images: list[bytes], monkeypatch: pytest.MonkeyPatch, is_shadow: bool
) -> None:
    monkeypatch.setattr("tests.engine.replicas.Held", Failing)
    async with serving_models(trial_models, feature_slots=1024) as replica:
        await replica.trials.change(shadow(2, 0.02) if is_shadow else canary(2, 1.0, 0.02))
        assert replica.models.trial is not None
        tried = replica.models.trial.tried.predictor
        assert isinstance(tried, Failing)
        monkeypatch.setattr(tried, "is_failing", True)
        assert await answered_by(replica, images[:1]) == [1]
        await until(lambda: replica.config.current.trial is None)
        ended = replica.config.current.ended
        assert ended is not None
        assert (ended.outcome, ended.why.split(",")[0]) == ("errors", "1 of 1 images failed")
        assert replica.metric("trial_errors_total", model="tiny/2") == 1


async def test_promotion_serves_it_without_loading_it_again(trial_models: ModelStore, images: list[bytes]) -> None:
    async with serving_models(trial_models) as replica:
        await replica.ask(0.3)
        await replica.trials.change(canary(2))
        run = replica.models.trial
        assert run is not None
        await replica.trials.promote()
        assert replica.models.find("tiny/2") is run.tried
        assert replica.models.trial is None
        config = replica.config.current
        assert (config.models, config.trial) == ({"tiny": 2}, None)
        assert config.thresholds == {"tiny": ThresholdConfig("threshold", 0.3, 0.3)}
        assert config.ended is not None
        assert config.ended.outcome == "promoted"
        assert await answered_by(replica, images[:3]) == [2, 2, 2]


async def test_cancelling_closes_it(trial_models: ModelStore, images: list[bytes]) -> None:
    others = workers()
    async with serving_models(trial_models) as replica:
        own = workers() - others
        await replica.trials.change(canary(2, 1.0))
        await replica.trials.cancel()
        assert await answered_by(replica, images[:3]) == [1, 1, 1]
        await until(lambda: workers() - others == own)
        assert replica.metric("trial_share", model="tiny/2", kind="canary") is None


@pytest.mark.parametrize("is_promoted", [False, True])
async def test_what_is_over_takes_no_memory_though_no_collector_runs(
    trial_models: ModelStore, images: list[bytes], is_promoted: bool
) -> None:
    async with without_collector(), serving_models(trial_models, feature_slots=1024) as replica:
        await replica.trials.change(shadow(2))
        await answered_by(replica, images[:2])
        await replica.compared(2)
        assert replica.models.trial is not None
        engine = replica.models.find(None) if is_promoted else replica.models.trial.tried
        gone = weakref.ref(engine), weakref.ref(engine.predictor)
        del engine
        await (replica.trials.promote() if is_promoted else replica.trials.cancel())
        await until(lambda: all(each() is None for each in gone))


async def test_what_is_on_can_be_changed_and_its_counts_go_on(trial_models: ModelStore, images: list[bytes]) -> None:
    async with serving_models(trial_models, feature_slots=1024) as replica:
        await replica.trials.change(shadow(2))
        await answered_by(replica, images[:3])
        await replica.compared(3)
        await replica.trials.change(Wish(share=1.0, is_shadow=False))
        await replica.trials.change(Wish("tiny/2", max_disagreement=0.1, is_guarded=True))
        trial = replica.config.current.trial
        assert trial is not None
        assert (trial.share, trial.kind, trial.max_disagreement) == (1.0, "canary", 0.1)
        assert await answered_by(replica, images[:3]) == [2, 2, 2]
        await replica.compared(6)
        await replica.trials.change(Wish(is_guarded=True))
        trial = replica.config.current.trial
        assert trial is not None
        assert trial.max_disagreement is None


async def test_another_trial_of_the_same_model_counts_anew(trial_models: ModelStore, images: list[bytes]) -> None:
    async with serving_models(trial_models, feature_slots=1024) as replica:
        for _ in range(2):
            await replica.trials.change(shadow(2))
            await answered_by(replica, images[:3])
            assert (await replica.compared(3)).images == 3
            await replica.trials.cancel()


async def test_what_is_asked_of_the_old_model_is_solved_for_what_is_tried(trial_models: ModelStore) -> None:
    async with serving_models(trial_models) as replica:
        await replica.ask(0.3)
        await replica.trials.change(shadow(2))
        engine = replica.models.find(None)
        chosen = ThresholdConfig("threshold", 0.4, 0.4)
        await replica.config.update(lambda now: replica.trials.following(now, engine, chosen))
        assert replica.models.trial is not None
        assert (engine.asked.threshold, replica.models.trial.tried.asked.threshold) == (0.4, 0.4)


@pytest.mark.parametrize(
    ("wish", "error", "why"),
    [
        (canary(1), InvalidOption, "model is 'tiny/1'; it must be a model other than tiny/1, which is served already"),
        (canary(4), InvalidOption, "'cow' and not 'cat'"),
        (canary(5), InvalidOption, "the order differs: class 1 is 'cat', not 'bee'"),
        (canary(9), NotFound, "tiny/9"),
        (Wish("tiny/2"), InvalidOption, "share"),
        (Wish(share=0.2), Conflict, "no trial is running"),
    ],
)
async def test_what_cannot_be_tried_changes_nothing_and_says_why(
    trial_models: ModelStore, wish: Wish, error: type[Exception], why: str
) -> None:
    async with serving_models(trial_models) as replica:
        before = replica.config.current
        with pytest.raises(error, match=why.replace("(", r"\(")):
            await replica.trials.change(wish)
        for end in (replica.trials.promote, replica.trials.cancel):
            with pytest.raises(Conflict, match="no trial is running"):
                await end()
        assert replica.config.current is before


async def test_while_one_is_tried_there_is_no_other_and_no_switch(trial_models: ModelStore) -> None:
    async with serving_models(trial_models) as replica:
        await replica.trials.change(shadow(2))
        before = replica.config.current
        with pytest.raises(Conflict, match="tiny/2 is the shadow already"):
            await replica.trials.change(canary(3))
        for reference in ("tiny/2", "tiny/3"):
            with pytest.raises(Conflict, match="promote or cancel it first"):
                await replica.switching.switch(reference)
        for act in (replica.trials.promote, replica.trials.cancel):
            with pytest.raises(ConfigConflict):
                await act(expected_version=before.version - 1)
        assert replica.config.current is before


async def test_replicas_agree_at_once_where_it_was_prepared(trial_models: ModelStore, images: list[bytes]) -> None:
    async with serving_models(trial_models) as one, serving_models(trial_models, config=one.config) as other:
        await one.trials.change(canary(2))
        await until(lambda: other.models.applied.tried == ("tiny", 2))
        assert await answered_by(one, images) == await answered_by(other, images)
        await one.trials.cancel()
        assert await answered_by(other, images) == [1] * len(images)  # before it is closed there
        await until(lambda: other.models.trial is None)
        await one.trials.change(canary(2, 1.0))
        await until(lambda: other.models.applied.tried is not None)
        await one.trials.promote()
        await until(lambda: other.served() == ["tiny/2"])
        assert await answered_by(other, images) == [2] * len(images)


async def test_a_replica_that_cannot_load_it_serves_on_and_says_so(
    trial_models: ModelStore, tiny_store: Path, images: list[bytes]
) -> None:
    async with serving_models(trial_models) as one:
        async with serving_models(ModelStore(tiny_store), config=one.config) as other:
            await one.trials.change(canary(2, 1.0))
            await until(lambda: other.switching.obstacle is not None)
            assert await answered_by(other, images[:3]) == [1, 1, 1]
            assert other.models.config.version == one.config.current.version
            await other.trials.cancel()
        assert await answered_by(one, images[:3]) == [1, 1, 1]


async def test_counts_of_other_processes_count_for_the_guard(trial_models: ModelStore, images: list[bytes]) -> None:
    async with serving_models(trial_models, feature_slots=1024) as replica:
        await replica.trials.change(shadow(2, most=0.5))
        await replica.ask_for(images[0])
        counts = await replica.compared(1)
        theirs = dataclasses.replace(counts, images=50, disagreements=50).as_json()

        async def others(began: float, own: object) -> list[dict[str, object]]:
            trial = replica.config.current.trial
            assert trial is None or (began, own) == (trial.began, counts.as_json())
            return [theirs]

        together = Trials(replica.models, replica.config, replica.switching, others)
        await Guard(together).look()
        assert replica.config.current.trial is None
        assert replica.config.current.ended is not None
        assert "50 of 51" in replica.config.current.ended.why


async def test_what_the_guard_cannot_end_it_halts_here(trial_models: ModelStore, images: list[bytes]) -> None:
    async with serving_models(trial_models, feature_slots=1024) as replica:

        async def unreachable(*_: object) -> RuntimeConfig:
            raise StoreUnavailable("it is out of reach")

        await replica.trials.change(canary(3, 1.0, most=0.02))
        run = replica.models.trial
        assert run is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(replica.config, "update", unreachable)
            await replica.ask_for(images[0])
            await until(lambda: run.is_halted)
            assert await answered_by(replica, images[:3]) == [1, 1, 1]
            assert replica.config.current.trial is not None
        await until(lambda: replica.config.current.trial is None)


async def test_a_trial_whose_guard_is_loosened_goes_on(trial_models: ModelStore, images: list[bytes]) -> None:
    async with serving_models(trial_models, feature_slots=1024) as replica:
        await replica.trials.change(canary(3, 1.0))
        await replica.ask_for(images[0])
        await replica.compared(1)
        run = replica.models.trial
        assert run is not None
        run.is_halted = True
        await replica.trials.change(Wish(max_disagreement=0.9, is_guarded=True))
        await until(lambda: not run.is_halted)
        assert await answered_by(replica, images[:3]) == [3, 3, 3]
