"""What every implementation of the shared state keeps to. Another one is one more parameter."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from service.errors import ConfigConflict
from service.state.base import (
    CachedOutputs,
    Change,
    ConfigStore,
    EndedTrial,
    ResultCache,
    RuntimeConfig,
    Target,
    Targets,
    ThresholdConfig,
    Trial,
)
from service.state.memory import MemoryConfigStore, MemoryResultCache, MemoryTargets
from service.state.redis.cache import RedisResultCache
from service.state.redis.config import RedisConfigStore
from service.state.redis.link import RedisLink
from service.state.redis.targets import RedisTargets
from tests.state.local import local_configs

TIMEOUT = 20

pytestmark = pytest.mark.anyio

START = RuntimeConfig(
    1,
    {"tiny": ThresholdConfig("threshold", 0.0, 0.5), "other": ThresholdConfig("min_agreement", 0.9, 0.7, 0.2)},
    {"tiny": 1, "other": 3},
)

LOW = CachedOutputs(((0.6, 0.4),))
COMPLETE = CachedOutputs(((0.6, 0.4), (0.1, 0.9)))
THREE = CachedOutputs((*COMPLETE.outputs, (0.3, 0.7)))

OpenConfig = Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[ConfigStore]]
OpenTargets = Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Targets]]
OpenCache = Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[ResultCache]]


@asynccontextmanager
async def memory_config(request: pytest.FixtureRequest) -> AsyncIterator[ConfigStore]:  # noqa: ARG001
    yield MemoryConfigStore(START)


@asynccontextmanager
async def redis_config(request: pytest.FixtureRequest) -> AsyncIterator[ConfigStore]:
    yield RedisConfigStore(RedisLink(request.getfixturevalue("redis_server").url), START)


@asynccontextmanager
async def local_config(request: pytest.FixtureRequest) -> AsyncIterator[ConfigStore]:  # noqa: ARG001
    async with local_configs(1) as (store,):
        yield store


@asynccontextmanager
async def memory_cache(request: pytest.FixtureRequest) -> AsyncIterator[ResultCache]:  # noqa: ARG001
    yield MemoryResultCache(capacity=100)


@asynccontextmanager
async def redis_cache(request: pytest.FixtureRequest) -> AsyncIterator[ResultCache]:
    link = RedisLink(request.getfixturevalue("redis_server").url)
    yield RedisResultCache(link, ttl_seconds=60)
    await link.close()


@asynccontextmanager
async def memory_targets(request: pytest.FixtureRequest) -> AsyncIterator[Targets]:  # noqa: ARG001
    yield MemoryTargets()


@asynccontextmanager
async def redis_targets(request: pytest.FixtureRequest) -> AsyncIterator[Targets]:
    link = RedisLink(request.getfixturevalue("redis_server").url)
    yield RedisTargets(link)
    await link.close()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(
    params=[
        pytest.param(memory_config, id="memory"),
        pytest.param(local_config, id="local"),
        pytest.param(redis_config, id="redis"),
    ]
)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ConfigStore]:
    """A config store that starts with ``START``."""
    open_: OpenConfig = request.param
    async with open_(request) as store:
        await store.start()
        yield store
        await store.close()


@pytest.fixture(params=[pytest.param(memory_cache, id="memory"), pytest.param(redis_cache, id="redis")])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[ResultCache]:
    """An empty cache."""
    open_: OpenCache = request.param
    async with open_(request) as cache:
        yield cache


@pytest.fixture(params=[pytest.param(memory_targets, id="memory"), pytest.param(redis_targets, id="redis")])
async def targets(request: pytest.FixtureRequest) -> AsyncIterator[Targets]:
    """Nothing is listed yet."""
    open_: OpenTargets = request.param
    async with open_(request) as targets:
        yield targets


def putting(tiny: ThresholdConfig) -> Change:
    """Sets what stands of ``tiny``, whatever it was."""
    return lambda config: dataclasses.replace(config, thresholds={**config.thresholds, "tiny": tiny})


def setting(threshold: float) -> Change:
    """Sets the threshold of ``tiny``, whatever it was."""
    return putting(ThresholdConfig("threshold", threshold, threshold))


def counting(config: RuntimeConfig) -> RuntimeConfig:
    """Adds one to the value of ``tiny``: applied n times, it says n."""
    tiny = config.thresholds["tiny"]
    return putting(dataclasses.replace(tiny, goal="max_mean_mmacs", value=tiny.value + 1))(config)


async def until_applied(store: ConfigStore, change: Change) -> RuntimeConfig:
    """As a client does that may meet others."""
    while True:
        try:
            return await store.update(change)
        except ConfigConflict:
            continue


async def test_store_starts_with_what_it_is_given(store: ConfigStore) -> None:
    assert store.current.version >= 1
    assert (store.current.thresholds, store.current.models) == (START.thresholds, START.models)
    assert (store.is_up, store.is_invalid) == (True, False)


async def test_version_grows_by_one_with_every_change(store: ConfigStore) -> None:
    first = store.current.version
    versions = [(await store.update(setting(threshold))).version for threshold in (0.1, 0.2, 0.2)]
    assert versions == [first + 1, first + 2, first + 3]


async def test_update_gives_the_config_it_made_and_current_is_that(store: ConfigStore) -> None:
    updated = await store.update(setting(0.25))
    assert updated.thresholds == {**START.thresholds, "tiny": ThresholdConfig("threshold", 0.25, 0.25)}
    assert updated.models == START.models
    assert store.current == updated


async def test_floor_and_goal_survive(store: ConfigStore) -> None:
    change = ThresholdConfig("max_accuracy_drop", 0.01, 1 / 3, floor=0.1)
    await store.update(putting(change))
    assert store.current.thresholds["tiny"] == change


async def test_earlier_config_does_not_change(store: ConfigStore) -> None:
    before = store.current
    await store.update(setting(0.25))
    assert before.thresholds == START.thresholds


async def test_models_change_and_keep_their_order(store: ConfigStore) -> None:
    models = {"other": 4, "new": 1, "tiny": 2}
    await store.update(lambda config: dataclasses.replace(config, models=models))
    assert list(store.current.models.items()) == list(models.items())


async def test_a_trial_is_shared_and_goes(store: ConfigStore) -> None:
    trial = Trial("tiny", 2, "tiny", 0.05, True, None, ThresholdConfig("threshold", 0.5, 0.5), 1.8e9)
    ended = EndedTrial("tiny", 2, "tiny", "cancelled", "as asked", 1.8e9)
    await store.update(lambda config: dataclasses.replace(config, trial=trial))
    assert (await store.update(setting(0.25))).trial == trial
    await store.update(lambda config: dataclasses.replace(config, trial=None, ended=ended))
    assert (store.current.trial, store.current.ended) == (None, ended)


async def test_version_that_a_change_gives_means_nothing(store: ConfigStore) -> None:
    before = store.current.version
    changed = await store.update(lambda config: dataclasses.replace(config, version=99))
    assert changed.version == before + 1


async def test_expected_version_lets_a_change_through(store: ConfigStore) -> None:
    updated = await store.update(setting(0.25), expected_version=store.current.version)
    assert updated.thresholds["tiny"].threshold == 0.25


@pytest.mark.parametrize("off_by", [-1, 1])
async def test_other_version_than_expected_is_a_conflict_that_names_both(store: ConfigStore, off_by: int) -> None:
    before = store.current
    with pytest.raises(ConfigConflict) as conflict:
        await store.update(setting(0.25), expected_version=before.version + off_by)
    assert (conflict.value.value, conflict.value.bound) == (before.version + off_by, before.version)
    assert store.current == before


async def test_change_that_raises_changes_nothing(store: ConfigStore) -> None:
    before = store.current

    def refuse(config: RuntimeConfig) -> RuntimeConfig:
        raise KeyError(config.version)

    with pytest.raises(KeyError):
        await store.update(refuse)
    assert store.current == before
    assert (await store.update(setting(0.25))).version == before.version + 1


async def test_concurrent_changes_are_all_applied_once(store: ConfigStore) -> None:
    first = store.current.version
    made = await asyncio.gather(*(until_applied(store, counting) for _ in range(50)))
    assert sorted(config.version for config in made) == list(range(first + 1, first + 51))
    assert store.current.thresholds["tiny"].value == 50
    assert store.current.version == first + 50


async def test_of_concurrent_changes_to_one_version_one_wins(store: ConfigStore) -> None:
    version = store.current.version
    changes = (store.update(counting, expected_version=version) for _ in range(20))
    outcomes = await asyncio.gather(*changes, return_exceptions=True)
    assert sum(isinstance(outcome, RuntimeConfig) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, ConfigConflict) for outcome in outcomes) == 19
    assert store.current.thresholds["tiny"].value == 1


async def test_unknown_key_is_a_miss(cache: ResultCache) -> None:
    assert await cache.get("nothing") is None


@pytest.mark.parametrize("known", [LOW, COMPLETE, THREE])
async def test_outputs_come_back_to_the_last_digit(cache: ResultCache, known: CachedOutputs) -> None:
    exact = CachedOutputs((tuple(p / 3 for p in known.outputs[0]), *known.outputs[1:]))
    await cache.put("key", exact)
    assert await cache.get("key") == exact


async def test_keys_do_not_mix(cache: ResultCache) -> None:
    await cache.put("one", LOW)
    await cache.put("two", COMPLETE)
    assert (await cache.get("one"), await cache.get("two")) == (LOW, COMPLETE)


@pytest.mark.parametrize(("fewer", "more"), [(LOW, COMPLETE), (COMPLETE, THREE), (LOW, THREE)])
async def test_entry_of_more_stages_replaces_one_of_fewer(
    cache: ResultCache, fewer: CachedOutputs, more: CachedOutputs
) -> None:
    await cache.put("key", fewer)
    await cache.put("key", more)
    assert await cache.get("key") == more


@pytest.mark.parametrize(("fewer", "more"), [(LOW, COMPLETE), (COMPLETE, THREE), (LOW, THREE)])
async def test_entry_of_fewer_stages_replaces_none_of_more(
    cache: ResultCache, fewer: CachedOutputs, more: CachedOutputs
) -> None:
    await cache.put("key", more)
    await cache.put("key", fewer)
    assert await cache.get("key") == more


async def test_concurrent_puts_keep_the_complete_entry(cache: ResultCache) -> None:
    await asyncio.gather(*(cache.put("key", THREE if i == 7 else (LOW, COMPLETE)[i % 2]) for i in range(20)))
    assert await cache.get("key") == THREE


async def test_memory_keeps_the_entries_used_last() -> None:
    cache = MemoryResultCache(capacity=2)
    await cache.put("one", LOW)
    await cache.put("two", LOW)
    assert await cache.get("one") == LOW
    await cache.put("three", LOW)
    assert [await cache.get(key) for key in ("one", "two", "three")] == [LOW, None, LOW]


async def test_memory_counts_a_put_as_use() -> None:
    cache = MemoryResultCache(capacity=2)
    await cache.put("one", COMPLETE)
    await cache.put("two", LOW)
    await cache.put("one", LOW)
    await cache.put("three", LOW)
    assert [await cache.get(key) for key in ("one", "two", "three")] == [COMPLETE, None, LOW]


async def test_replica_is_listed_from_its_start_to_its_close(targets: Targets) -> None:
    own = Target("192.0.2.7:9101", "the first one")
    assert await targets.listed() == []
    await targets.start(own)
    assert await targets.listed() == [own]
    await targets.close()
    assert await targets.listed() == []


async def test_what_was_never_listed_can_be_closed(targets: Targets) -> None:
    await targets.close()


async def test_turns_are_taken_one_at_a_time_and_each_comes(store: ConfigStore) -> None:
    within: list[int] = []
    most: list[int] = []

    async def take(number: int) -> None:
        async with store.turn():
            within.append(number)
            await asyncio.sleep(0)
            most.append(len(within))
            within.remove(number)

    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*map(take, range(5)))
    assert most == [1] * 5


async def test_a_turn_that_is_given_up_is_nobodys(store: ConfigStore) -> None:
    async def take() -> None:
        async with store.turn():
            pass

    async with asyncio.timeout(TIMEOUT):
        async with store.turn():
            waiting = asyncio.create_task(take())
            await asyncio.sleep(0)  # it has asked
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        with pytest.raises(ZeroDivisionError):
            async with store.turn():
                _ = 1 / 0
        await take()
