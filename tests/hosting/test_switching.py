"""Models are exchanged while they serve: no image is lost, what was asked is kept, what is broken changes nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from service.engine.answer import Answer
from service.errors import ConfigConflict, Conflict, InvalidOption, NotFound
from service.hosting.applied import first_config
from service.model_spec import ModelSpec
from service.state.base import ThresholdConfig
from service.state.memory import MemoryConfigStore
from service.store import ModelStore, read_spec, write_spec
from tests.engine.replicas import load, serving_models, workers
from tests.engine.serving import TIMEOUT, in_time, until

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be served is tried again soon."""
    monkeypatch.setattr("service.engine.tuning.RETRY_SECONDS", 0.1)


async def test_newer_version_takes_the_place_of_its_own_name(store: ModelStore, jpeg: bytes) -> None:
    async with serving_models(store, "other/1", "tiny/1") as replica:
        before = replica.config.current.version
        engine = await replica.switching.switch("tiny")
        assert engine.spec.reference == "tiny/2"
        assert replica.served() == ["other/1", "tiny/2"]
        assert replica.config.current.models == {"other": 1, "tiny": 2}
        assert replica.models.config.version == replica.config.current.version == before + 1
        answer = await replica.classify(jpeg, "tiny")
        assert (answer.version, answer.config_version) == (2, before + 1)


async def test_another_name_takes_the_place_of_the_default_or_of_the_one_that_is_named(store: ModelStore) -> None:
    async with serving_models(store, "tiny/1") as replica:
        await replica.switching.switch("other")
        assert replica.served() == ["other/1"]
        assert set(replica.config.current.thresholds) == {"other"}
    async with serving_models(store, "other/1", "tiny/1") as replica:
        with pytest.raises(InvalidOption, match="not served yet; other is served beside tiny"):
            await replica.switching.switch("other", instead_of="tiny")
        with pytest.raises(NotFound):
            await replica.switching.switch("other", instead_of="huge")
        assert replica.served() == ["other/1", "tiny/1"]


async def test_what_serves_already_changes_nothing(store: ModelStore) -> None:
    async with serving_models(store) as replica:
        before = replica.config.current
        assert (await replica.switching.switch("tiny/1")).spec.reference == "tiny/1"
        assert replica.config.current is before


async def test_default_threshold_becomes_the_new_models_default_and_another_is_kept(store: ModelStore) -> None:
    async with serving_models(store) as replica:
        await replica.switching.switch("other")
        assert replica.config.current.thresholds["other"].threshold == 0.8
        await replica.ask(0.5)
        await replica.switching.switch("tiny/2")
        assert replica.config.current.thresholds["tiny"] == ThresholdConfig("threshold", 0.5, 0.5)


async def test_goal_is_solved_anew_with_the_new_models_table(store: ModelStore, tmp_path: Path) -> None:
    shutil.copytree(store.root / "tiny", tmp_path / "tiny")
    folder = tmp_path / "tiny" / "2"
    spec = read_spec(folder)
    rows = tuple(dataclasses.replace(row, disagreements=0) for row in spec.calibration[0].rows)
    write_spec(folder, dataclasses.replace(spec, calibration=(dataclasses.replace(spec.calibration[0], rows=rows),)))
    async with serving_models(ModelStore(tmp_path), "tiny/1") as replica:
        old = next(iter(replica.models)).predictor
        solved = old.solve("min_agreement", 0.9)
        asked = ThresholdConfig("min_agreement", 0.9, solved, floor=solved)
        await replica.config.update(lambda now: dataclasses.replace(now, thresholds={"tiny": asked}))
        new = await replica.switching.switch("tiny/2")
        assert solved > 0 == new.asked.threshold
        assert new.asked == ThresholdConfig("min_agreement", 0.9, 0.0, floor=0.0)


@pytest.mark.parametrize(
    ("reference", "error", "why"),
    [
        ("broken", InvalidOption, "SHA-256|sha256|digest|hash"),
        ("huge", NotFound, "huge"),
        ("tiny/9", NotFound, "tiny/9"),
        ("../tiny", InvalidOption, "name of lower-case letters"),
        ("tiny/../../x", NotFound, "versions"),
    ],
)
async def test_what_cannot_be_served_changes_nothing_and_says_why(
    store: ModelStore, jpeg: bytes, reference: str, error: type[Exception], why: str
) -> None:
    async with serving_models(store) as replica:
        before = replica.config.current
        with pytest.raises(error, match=why):
            await replica.switching.switch(reference)
        assert replica.config.current is before
        assert replica.served() == ["tiny/1"]
        assert (await replica.classify(jpeg)).model == "tiny"


async def test_goal_that_the_new_model_cannot_reach_changes_nothing(store: ModelStore, tmp_path: Path) -> None:
    shutil.copytree(store.root / "tiny", tmp_path / "tiny")
    folder = tmp_path / "tiny" / "2"
    write_spec(folder, _dearer(read_spec(folder)))
    async with serving_models(ModelStore(tmp_path), "tiny/1") as replica:
        old = next(iter(replica.models)).predictor
        budget = old.spec.mean_mmacs((0.5, 0.5))
        asked = ThresholdConfig("max_mean_mmacs", budget, old.solve("max_mean_mmacs", budget))
        await replica.config.update(lambda now: dataclasses.replace(now, thresholds={"tiny": asked}))
        with pytest.raises(InvalidOption, match="max_mean_mmacs"):
            await replica.switching.switch("tiny/2")
        assert replica.served() == ["tiny/1"]


async def test_switch_of_a_config_that_changed_is_a_conflict(store: ModelStore) -> None:
    async with serving_models(store) as replica:
        for expected in (replica.config.current.version + 1, replica.config.current.version - 1):
            with pytest.raises(ConfigConflict):
                await replica.switching.switch("other", expected_version=expected)
        assert replica.served() == ["tiny/1"]


async def test_every_image_is_answered_while_models_are_exchanged(store: ModelStore, jpeg: bytes) -> None:
    async with serving_models(store, workers=2) as replica:
        done = asyncio.Event()
        answered: list[Answer] = []

        async def client() -> None:
            while not done.is_set():
                answered.append(await replica.classify(jpeg))

        clients = [asyncio.create_task(client()) for _ in range(8)]
        for reference in ("tiny/2", "other", "tiny/1"):
            await replica.switching.switch(reference)
            seen = len(answered)
            await until(lambda seen=seen: len(answered) > seen + 8)  # type: ignore[misc]
        done.set()
        await asyncio.wait_for(asyncio.gather(*clients), TIMEOUT)
        assert {(answer.model, answer.version) for answer in answered} == {("tiny", 1), ("tiny", 2), ("other", 1)}


async def test_switches_at_the_same_time_are_made_one_after_the_other(store: ModelStore) -> None:
    async with serving_models(store) as replica:
        await asyncio.gather(*(replica.switching.switch(reference) for reference in ("tiny/2", "other", "tiny/1")))
        assert replica.served() == ["tiny/1"]
        assert replica.config.current.version == 4


# what another replica was told


async def test_replica_serves_what_another_was_told_to(store: ModelStore, jpeg: bytes) -> None:
    async with serving_models(store) as one, serving_models(store, config=one.config) as other:
        await one.ask(0.3)
        await one.switching.switch("tiny/2")
        await until(lambda: other.served() == ["tiny/2"])
        answers = [await replica.classify(jpeg) for replica in (one, other)]
        assert {(answer.version, answer.threshold, answer.config_version) for answer in answers} == {(2, 0.3, 3)}


async def test_what_another_replica_will_ask_for_is_prepared_before_it_does(store: ModelStore, jpeg: bytes) -> None:
    others = workers()  # other tests' servers may still run
    async with serving_models(store) as replica:
        first = workers() - others
        replica.config.announced = {"tiny": 2}
        await until(lambda: bool(workers() - others - first))
        await replica.classify(jpeg)
        assert replica.served() == ["tiny/1"]
        ready = workers() - others - first
        await replica.name({"tiny": 2})
        await until(lambda: replica.served() == ["tiny/2"])
        await until(lambda: not first & workers())
        assert workers() - others == ready  # no other was started for it


class Shared(MemoryConfigStore):
    """Stands for a config that another replica shares, which is not prepared until ``other`` is set."""

    def __init__(self, store: ModelStore) -> None:
        super().__init__(first_config([load(store.find("tiny/1"))]))
        self.told = asyncio.Event()
        self.waited_for = asyncio.Event()
        self.other = asyncio.Event()
        self.why_not: str | None = None
        self.refused: list[str] = []
        self.told_of: list[int] = []  # versions of the config
        self.serving = asyncio.Event()
        self.serving.set()

    async def tell_prepared(self, models: Mapping[str, int], why_not: str | None = None) -> None:
        assert models == self.announced
        self.why_not = why_not
        self.told.set()

    async def others_prepared(self) -> list[str]:
        self.waited_for.set()
        await self.other.wait()
        return self.refused

    async def tell_serving(self, version: int) -> None:
        self.told_of.append(version)

    async def others_serving(self, version: int) -> None:
        assert version == self.current.version
        await self.serving.wait()


@pytest.mark.parametrize("announced", [{"tiny": 2}, {"tiny": 1}, {"broken": 1}])
async def test_who_announced_is_told_once_it_is_prepared_or_cannot_be(
    store: ModelStore, announced: dict[str, int]
) -> None:
    config = Shared(store)
    async with serving_models(store, config=config):
        config.announced = announced
        await in_time(config.told.wait())


async def test_a_model_changes_once_the_other_replicas_are_prepared(
    store: ModelStore, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.tuning.MIN_PATIENCE_SECONDS", TIMEOUT)
    config = Shared(store)
    async with serving_models(store, config=config) as replica:
        switching = asyncio.create_task(replica.switching.switch("tiny/2"))
        await in_time(config.waited_for.wait())
        assert (await replica.classify(jpeg)).version == 1
        assert not switching.done()
        config.other.set()
        await asyncio.wait_for(switching, TIMEOUT)
        assert (await replica.classify(jpeg)).version == 2


async def test_what_another_replica_cannot_serve_changes_nothing_and_says_why(store: ModelStore) -> None:
    config = Shared(store)
    config.refused = ["no room"]
    config.other.set()
    others = workers()
    async with serving_models(store, config=config) as replica:
        first = workers() - others
        before = config.current
        with pytest.raises(Conflict, match="another replica cannot serve it, so nothing has changed: no room"):
            await in_time(replica.switching.switch("tiny/2"))
        assert config.current is before
        assert workers() - others == first


async def test_a_change_is_answered_once_the_other_replicas_serve_it(store: ModelStore) -> None:
    config = Shared(store)
    config.other.set()
    async with serving_models(store, config=config) as replica:
        config.serving.clear()
        switching = asyncio.create_task(replica.switching.switch("tiny/2"))
        await until(lambda: replica.served() == ["tiny/2"])
        assert not switching.done()
        config.serving.set()
        await asyncio.wait_for(switching, TIMEOUT)


async def test_a_replica_tells_of_what_it_serves_and_of_what_it_cannot(store: ModelStore) -> None:
    config = Shared(store)
    async with serving_models(store, config=config) as replica:
        assert config.told_of == [1]  # a change since it joined may wait for it
        await replica.name({"tiny": 2})
        await until(lambda: config.told_of == [1, 2])
        await replica.name({"broken": 1})
        await until(lambda: config.told_of[:3] == [1, 2, 3])


async def test_what_is_announced_is_prepared_though_the_config_names_what_nobody_can_serve(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.tuning.RETRY_SECONDS", 3600)
    config = Shared(store)
    async with serving_models(store, config=config) as replica:
        await replica.name({"broken": 1})
        await until(lambda: replica.switching.obstacle is not None)
        config.announced = {"tiny": 2}
        await in_time(config.told.wait())
        await replica.name({"tiny": 2})
        await until(lambda: replica.served() == ["tiny/2"])


async def test_of_switches_on_two_replicas_at_once_the_last_one_wins(store: ModelStore) -> None:
    async with serving_models(store) as one, serving_models(store, config=one.config) as two:
        both = (one.switching.switch("tiny/2"), two.switching.switch("other"))
        await asyncio.wait_for(asyncio.gather(*both), TIMEOUT)
        assert one.config.current.models == {"other": 1}
        await until(lambda: one.served() == two.served() == ["other/1"])


async def test_a_replica_that_was_lost_is_not_waited_for_for_ever(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.tuning.MIN_PATIENCE_SECONDS", 0.0)
    async with serving_models(store, config=Shared(store)) as replica:
        await in_time(replica.switching.switch("tiny/2"))
        assert replica.served() == ["tiny/2"]


async def test_what_is_not_asked_for_after_all_is_forgotten(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.tuning.PREPARED_SECONDS", 0.0)
    others = workers()
    async with serving_models(store) as replica:
        first = workers() - others
        for announced in ({"tiny": 2}, {"broken": 1}, {"nowhere": 9}, {"tiny": 2}):
            replica.config.announced = announced
            await until(lambda announced=announced: replica.switching._announced is announced)  # type: ignore[misc]
            await until(lambda: workers() - others == first)
        assert replica.served() == ["tiny/1"]
        assert replica.switching.obstacle is None


async def test_replica_that_cannot_follow_serves_on_under_the_config_it_can_keep(
    store: ModelStore, jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving_models(store) as replica:
        await replica.ask(0.3)
        await until(lambda: replica.models.config.version == 2)
        await replica.name({"broken": 1})
        await until(lambda: replica.switching.obstacle is not None)
        assert caplog.text.count("cannot be served here") == 1
        await replica.config.update(  # solved for another version, were there one
            lambda now: dataclasses.replace(now, thresholds={"tiny": ThresholdConfig("threshold", 0.9, 0.9)})
        )
        assert replica.served() == ["tiny/1"]
        answer = await replica.classify(jpeg)
        assert (answer.model, answer.threshold, answer.config_version) == ("tiny", 0.3, 2)
        assert replica.models.config.version == 2
        await replica.name({"tiny": 2})
        await until(lambda: replica.served() == ["tiny/2"])
        assert replica.switching.obstacle is None
        assert (await replica.classify(jpeg)).config_version == 5


@pytest.mark.parametrize("reference", ["tiny/1", "tiny/2"])
async def test_what_nobody_can_serve_is_overruled_by_what_is_asked_for(
    store: ModelStore, jpeg: bytes, reference: str
) -> None:
    async with serving_models(store, "tiny/1", "other/1") as replica:
        await replica.ask(0.3)
        await replica.name({"broken": 1})
        await until(lambda: replica.switching.obstacle is not None)
        await replica.switching.switch(reference)
        assert replica.config.current.served == (("tiny", int(reference[-1])), ("other", 1))
        answer = await replica.classify(jpeg)
        assert (answer.version, answer.threshold, answer.config_version) == (int(reference[-1]), 0.3, 4)
        await until(lambda: replica.switching.obstacle is None)


async def test_default_model_is_the_one_that_the_shared_config_names_first(store: ModelStore, jpeg: bytes) -> None:
    async with (
        serving_models(store, "tiny/1", "other/1") as one,
        serving_models(store, "other/1", "tiny/1", config=one.config) as two,
    ):
        assert two.served() == one.served() == ["tiny/1", "other/1"]
        await one.name({"other": 1, "tiny": 1})
        await until(lambda: one.served() == two.served() == ["other/1", "tiny/1"])
        assert (await two.classify(jpeg)).model == "other"


def _dearer(spec: ModelSpec) -> ModelSpec:
    """The same where every stage costs a million times as much."""
    return dataclasses.replace(
        spec, stages=tuple(dataclasses.replace(stage, mmacs=1e6 * stage.mmacs) for stage in spec.stages)
    )
