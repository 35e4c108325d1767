"""The shared state over a real Redis: several replicas, a Redis that dies, hangs, forgets, or holds nonsense."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

import service.state.redis.config
import service.state.redis.link
import service.state.redis.targets
from service.errors import ConfigConflict, InvalidOption, StoreUnavailable
from service.log import logger
from service.state.base import CachedOutputs, Change, RuntimeConfig, Target, ThresholdConfig
from service.state.encoding import encode_config
from service.state.redis.cache import RedisResultCache
from service.state.redis.config import RedisConfigStore
from service.state.redis.link import RedisLink
from service.state.redis.targets import RedisTargets
from tests.conftest import RedisServer

pytestmark = pytest.mark.anyio

START = RuntimeConfig(1, {"tiny": ThresholdConfig("threshold", 0.5, 0.5)}, {"tiny": 1})
LOW = CachedOutputs(((0.6, 0.4),))
COMPLETE = CachedOutputs(((0.6, 0.4), (0.1, 0.9)))

CONFIG_KEY = "lowfirst:config"
TIMEOUT = 20

CACHE_SECONDS, CONFIG_SECONDS = service.state.redis.link.CACHE_SECONDS, service.state.redis.link.CONFIG_SECONDS


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the server logs, whatever an earlier test configured."""
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, logger.name)
    return caplog


@asynccontextmanager
async def replica(
    server: RedisServer, start: RuntimeConfig = START, prefix: str = "lowfirst:"
) -> AsyncIterator[RedisConfigStore]:
    """The started config store of one more server."""
    store = RedisConfigStore(RedisLink(server.url, prefix), start)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def until(reached: Callable[[], bool]) -> None:
    """Look until a state is reached that announces itself to nobody."""
    async with asyncio.timeout(TIMEOUT):
        while not reached():
            await asyncio.sleep(0.005)


def setting(threshold: float) -> Change:
    """Sets the threshold of ``tiny``, whatever it was."""
    chosen = ThresholdConfig("threshold", threshold, threshold)
    return lambda config: dataclasses.replace(config, thresholds={**config.thresholds, "tiny": chosen})


def counting(config: RuntimeConfig) -> RuntimeConfig:
    """Adds one to the value of ``tiny``: applied n times, it says n."""
    tiny = config.thresholds["tiny"]
    counted = dataclasses.replace(tiny, goal="max_mean_mmacs", value=tiny.value + 1)
    return dataclasses.replace(config, thresholds={"tiny": counted})


async def test_others_are_told_what_will_be_asked_for_and_nothing_else_has_changed(redis_server: RedisServer) -> None:
    async with replica(redis_server) as one, replica(redis_server) as other:
        models = {"tiny": 2, "bees": 1}
        async with asyncio.timeout(TIMEOUT):
            while not other.announced:  # until it has subscribed
                await one.announce(models)
        first = other.announced
        assert first == models
        await one.announce(models)
        await until(lambda: other.announced is not first)
        assert not one.announced  # its own word
        assert one.current == other.current == START


async def test_who_announces_waits_until_each_who_heard_is_prepared(redis_server: RedisServer) -> None:
    async with replica(redis_server) as one, replica(redis_server) as two, replica(redis_server) as three:
        await until(lambda: redis_server.client.pubsub_numsub(CONFIG_KEY)[0][1] == 3)
        await one.announce({"tiny": 2})
        waiting = asyncio.create_task(one.others_prepared())
        for other in (two, three):
            await until(lambda other=other: other.announced == {"tiny": 2})  # type: ignore[misc]
        await two.tell_prepared({"tiny": 2})
        await three.announce({"tiny": 3})
        await until(lambda: one.announced == {"tiny": 3})  # what two said before has been heard
        assert not waiting.done()
        await three.tell_prepared({"tiny": 2})
        await asyncio.wait_for(waiting, TIMEOUT)


async def test_who_changed_the_models_hears_who_cannot_and_who_serves_them(redis_server: RedisServer) -> None:
    async with replica(redis_server) as one, replica(redis_server) as other:
        await until(lambda: redis_server.client.pubsub_numsub(CONFIG_KEY)[0][1] == 2)
        await one.announce({"tiny": 2})
        await other.tell_prepared({"tiny": 2}, "no room")
        assert await asyncio.wait_for(one.others_prepared(), TIMEOUT) == ["no room"]
        waiting = asyncio.create_task(one.others_serving(7))
        await other.tell_serving(6)
        await other.announce({"tiny": 3})
        await until(lambda: one.announced == {"tiny": 3})  # what was said before has been heard
        assert not waiting.done()
        await other.tell_serving(7)
        await asyncio.wait_for(waiting, TIMEOUT)


async def test_a_turn_is_of_one_replica_for_as_long_as_it_lasts_and_no_longer_than_its_replica(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.state.redis.config, "TURN_SECONDS", 0.4)
    async with replica(redis_server) as one, replica(redis_server) as other:

        async def take() -> None:
            async with other.turn():
                pass

        async with one.turn():
            waiting = asyncio.create_task(take())
            with pytest.raises(TimeoutError):  # it is kept for longer than it would last by itself
                await asyncio.wait_for(asyncio.shield(waiting), 3 * service.state.redis.config.TURN_SECONDS)
        await asyncio.wait_for(waiting, TIMEOUT)
        redis_server.client.set("lowfirst:turn", "of one that died", px=200)
        await asyncio.wait_for(take(), TIMEOUT)


async def test_no_turn_is_waited_for_while_redis_is_away(redis_server: RedisServer) -> None:
    async with replica(redis_server) as one:
        redis_server.kill()
        async with asyncio.timeout(TIMEOUT):
            for _ in range(2):
                async with one.turn():
                    pass


async def test_who_is_alone_waits_for_nobody(redis_server: RedisServer) -> None:
    async with replica(redis_server) as one:
        await until(lambda: redis_server.client.pubsub_numsub(CONFIG_KEY)[0][1] == 1)
        await one.announce({"tiny": 2})
        await asyncio.wait_for(one.others_prepared(), TIMEOUT)


async def test_nobody_is_told_while_redis_is_away(redis_server: RedisServer) -> None:
    async with replica(redis_server) as one:
        redis_server.kill()
        await one.announce({"tiny": 2})
        await asyncio.wait_for(one.others_prepared(), TIMEOUT)
        await one.tell_prepared({"tiny": 2})


def at(version: int, threshold: float = 0.5) -> RuntimeConfig:
    """A config as another replica, or a hand, might put it there."""
    return RuntimeConfig(version, {"tiny": ThresholdConfig("threshold", threshold, threshold)}, {"tiny": 1})


# several replicas


async def test_announced_change_is_applied_elsewhere(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.state.redis.config, "POLL_SECONDS", 3600)
    async with replica(redis_server) as one, replica(redis_server) as other:
        await until(lambda: redis_server.client.pubsub_numsub(CONFIG_KEY)[0][1] == 2)
        await one.update(setting(0.25))
        await until(lambda: other.current == one.current)
        assert other.current == at(2, 0.25)


async def test_change_whose_announcement_is_lost_is_applied_too(redis_server: RedisServer) -> None:
    async with replica(redis_server) as store:
        redis_server.client.set(CONFIG_KEY, encode_config(at(2, 0.25)))
        await until(lambda: store.current == at(2, 0.25))


def test_poll_leaves_time_to_apply_a_change_within_a_second() -> None:
    assert service.state.redis.config.POLL_SECONDS <= 0.5


async def test_of_changes_to_one_version_on_two_replicas_one_wins(redis_server: RedisServer) -> None:
    async with replica(redis_server) as one, replica(redis_server) as other:
        changes = (store.update(counting, expected_version=1) for store in (one, other) * 10)
        outcomes = await asyncio.gather(*changes, return_exceptions=True)
        assert sum(isinstance(outcome, RuntimeConfig) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, ConfigConflict) for outcome in outcomes) == 19
        await until(lambda: one.current == other.current)
        assert one.current.thresholds["tiny"].value == 1.5


async def test_changes_that_expect_no_version_are_all_applied_without_a_conflict(redis_server: RedisServer) -> None:
    async with replica(redis_server) as one, replica(redis_server) as other:
        made = await asyncio.gather(*(store.update(counting) for store in (one, other) * 20))
        assert sorted(config.version for config in made) == list(range(2, 42))
        await until(lambda: one.current == other.current)
        assert one.current.thresholds["tiny"].value == 40.5


async def test_replica_that_did_not_hear_of_a_change_yet_does_not_undo_it(redis_server: RedisServer) -> None:
    async with replica(redis_server) as store:
        redis_server.client.set(CONFIG_KEY, encode_config(at(8, 0.25)))
        assert (await store.update(lambda config: config)) == at(9, 0.25)


async def test_restart_finds_the_last_threshold(redis_server: RedisServer) -> None:
    async with replica(redis_server) as store:
        await store.update(setting(0.25))
    async with replica(redis_server) as restarted:
        assert restarted.current == at(2, 0.25)


async def test_what_stands_there_wins_over_a_start_of_the_same_version(redis_server: RedisServer) -> None:
    async with replica(redis_server) as store, replica(redis_server, at(1, 0.9)) as newcomer:
        assert newcomer.current == store.current == START


async def test_models_that_are_shared_win_over_those_of_a_start(redis_server: RedisServer) -> None:
    other = RuntimeConfig(1, {"other": ThresholdConfig("threshold", 0.7, 0.7)}, {"other": 3})
    async with replica(redis_server) as store:
        await store.update(setting(0.25))
        async with replica(redis_server, other) as newcomer:
            assert newcomer.current == store.current == at(2, 0.25)


async def test_fleets_of_other_prefixes_do_not_meet(redis_server: RedisServer) -> None:
    async with replica(redis_server) as store, replica(redis_server, prefix="other:") as stranger:
        await store.update(setting(0.25))
        await stranger._refresh()
        assert stranger.current == START


# a Redis that dies or hangs


async def test_killed_redis_costs_no_config_and_no_version(redis_server: RedisServer) -> None:
    async with replica(redis_server) as store:
        await store.update(setting(0.25))
        redis_server.kill()
        with pytest.raises(StoreUnavailable):
            await store.update(setting(0.75))
        assert store.current == at(2, 0.25)
        await until(lambda: not store.is_up)
        redis_server.start()  # empty
        await until(lambda: store.is_up)
        assert redis_server.client.get(CONFIG_KEY) == encode_config(at(2, 0.25))
        assert await store.update(setting(0.75)) == at(3, 0.75)


async def test_change_made_before_the_empty_redis_is_noticed_goes_on_from_the_version_known(
    redis_server: RedisServer,
) -> None:
    async with replica(redis_server) as store:
        await store.update(setting(0.25))
        redis_server.client.flushall()
        assert await store.update(setting(0.75)) == at(3, 0.75)


async def test_of_several_replicas_the_newest_config_comes_back(redis_server: RedisServer) -> None:
    async with replica(redis_server) as store, replica(redis_server) as other:
        await store.update(setting(0.25))
        await store.update(setting(0.75))
        await until(lambda: other.current == at(3, 0.75))
        redis_server.client.set(CONFIG_KEY, encode_config(at(2, 0.25)))  # a backup, or a replica that had missed one
        await until(lambda: redis_server.client.get(CONFIG_KEY) == encode_config(at(3, 0.75)))
        assert store.current == other.current == at(3, 0.75)


async def test_announcements_are_heard_again_after_a_restart(redis_server: RedisServer) -> None:
    async with replica(redis_server) as store:
        redis_server.kill()
        await until(lambda: not store.is_up)
        redis_server.start()
        await until(lambda: redis_server.client.pubsub_numsub(CONFIG_KEY)[0][1] == 1)


async def test_hanging_redis_holds_up_neither_the_cache_nor_for_long_a_change(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replica(redis_server) as store:
        cache = RedisResultCache(store._link, ttl_seconds=60)
        await cache.put("key", COMPLETE)
        monkeypatch.setattr(service.state.redis.link, "CACHE_SECONDS", CACHE_SECONDS)
        monkeypatch.setattr(service.state.redis.link, "CONFIG_SECONDS", CONFIG_SECONDS)
        redis_server.suspend()
        async with asyncio.timeout(TIMEOUT):  # two hundred that each waited would take longer
            for _ in range(200):
                assert await cache.get("key") is None
                await cache.put("other", LOW)
        await until(lambda: not store.is_up)
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            await store.update(setting(0.25))
        redis_server.resume()
        for name in ("CACHE", "CONFIG"):
            monkeypatch.setattr(service.state.redis.link, f"{name}_SECONDS", TIMEOUT)
        await until(lambda: store.is_up)
        assert await cache.get("key") == COMPLETE


async def test_log_tells_once_that_redis_is_gone_and_once_that_it_is_back(
    redis_server: RedisServer, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.state.redis.config, "POLL_SECONDS", 0.01)
    async with replica(redis_server) as store:
        cache = RedisResultCache(store._link, ttl_seconds=60)
        redis_server.kill()
        for _ in range(20):
            await cache.get("key")
            await store._refresh()
        redis_server.start()
        await until(lambda: store.is_up)
    told = [record.message for record in log.records if "Redis" in record.message]
    assert [("cannot be reached" in line, "answers again" in line) for line in told] == [(True, False), (False, True)]


async def test_store_whose_redis_comes_later_starts_by_itself_and_joins(stopped_redis: RedisServer) -> None:
    async with replica(stopped_redis) as store:
        assert (store.is_up, store.current) == (False, START)
        stopped_redis.start()
        stopped_redis.client.set(CONFIG_KEY, encode_config(at(1, 0.25)))
        await until(lambda: store.is_up)
        await until(lambda: store.current in (at(1, 0.25), at(2, 0.25)))


async def test_key_of_another_kind_leaves_the_config_in_force(redis_server: RedisServer) -> None:
    redis_server.client.lpush(CONFIG_KEY, "something else")
    async with replica(redis_server) as store:
        assert (store.is_up, store.current) == (False, START)
        with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
            await store.update(setting(0.25))


# a config that is none


@pytest.mark.parametrize("raw", [b"nonsense", encode_config(at(9, 1.5)), encode_config(at(0))])
async def test_config_out_of_bounds_is_ignored_told_once_and_replaced_by_the_next_change(
    redis_server: RedisServer, log: pytest.LogCaptureFixture, raw: bytes
) -> None:
    async with replica(redis_server) as store:
        await store.update(setting(0.25))
        redis_server.client.set(CONFIG_KEY, raw)
        await until(lambda: store.is_invalid)
        await store._refresh()
        assert (store.is_up, store.current, redis_server.client.get(CONFIG_KEY)) == (True, at(2, 0.25), raw)
        assert sum("is ignored, version 2 stays" in record.message for record in log.records) == 1
        assert await store.update(setting(0.75)) == at(3, 0.75)
        assert not store.is_invalid


async def test_config_of_a_newer_release_is_ignored_and_not_replaced(redis_server: RedisServer) -> None:
    raw = encode_config(at(9)).replace(b'"format": 1', b'"format": 2')
    redis_server.client.set(CONFIG_KEY, raw)
    async with replica(redis_server) as store:
        assert (store.is_invalid, store.current) == (True, START)
        with pytest.raises(StoreUnavailable, match="format 2; this release knows 1"):
            await store.update(setting(0.25))
        assert redis_server.client.get(CONFIG_KEY) == raw
        redis_server.client.set(CONFIG_KEY, encode_config(at(10)))
        await until(lambda: not store.is_invalid)
        assert store.current == at(10)


# the cache


async def test_results_expire_and_carry_the_prefix(redis_server: RedisServer) -> None:
    link = RedisLink(redis_server.url, "bees:")
    cache = RedisResultCache(link, ttl_seconds=60)
    await cache.put("low", LOW)
    await cache.put("complete", COMPLETE)
    await link.close()
    keys = redis_server.client.keys("*")
    assert sorted(keys) == [b"bees:cache:1:complete", b"bees:cache:1:low"]
    assert all(0 < redis_server.client.ttl(key) <= 60 for key in keys)


async def test_what_is_no_result_is_a_miss(redis_server: RedisServer) -> None:
    link = RedisLink(redis_server.url)
    cache = RedisResultCache(link, ttl_seconds=60)
    redis_server.client.set("lowfirst:cache:1:text", "high")
    redis_server.client.lpush("lowfirst:cache:1:list", "high")
    assert [await cache.get(key) for key in ("text", "list")] == [None, None]
    assert link.is_up
    await link.close()


async def test_what_is_no_result_is_replaced(redis_server: RedisServer) -> None:
    link = RedisLink(redis_server.url)
    cache = RedisResultCache(link, ttl_seconds=60)
    redis_server.client.lpush("lowfirst:cache:1:list", "high")
    await cache.put("list", LOW)
    assert await cache.get("list") == LOW
    assert link.is_up
    await link.close()


async def test_redis_that_takes_no_more_leaves_the_cache_readable(redis_server: RedisServer) -> None:
    link = RedisLink(redis_server.url)
    cache = RedisResultCache(link, ttl_seconds=60)
    await cache.put("key", COMPLETE)
    redis_server.client.config_set("maxmemory", 1)
    await cache.put("other", COMPLETE)
    assert [await cache.get(key) for key in ("key", "other")] == [COMPLETE, None]
    await link.close()


async def test_more_look_ups_at_once_than_connections_all_succeed(redis_server: RedisServer) -> None:
    link = RedisLink(redis_server.url)
    cache = RedisResultCache(link, ttl_seconds=60)
    await cache.put("key", COMPLETE)
    found = await asyncio.gather(*(cache.get("key") for _ in range(10 * service.state.redis.link.CONNECTIONS)))
    assert set(found) == {COMPLETE}
    await link.close()


async def test_answer_that_comes_too_late_is_not_taken_for_another(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = RedisLink(redis_server.url)
    cache = RedisResultCache(link, ttl_seconds=60)
    await asyncio.gather(*(cache.put(str(key), CachedOutputs(((key / 50, 1 - key / 50),))) for key in range(50)))
    redis_server.suspend()
    left = [asyncio.create_task(cache.get(str(key))) for key in range(5)]
    await asyncio.sleep(0)
    for task in left:
        task.cancel()  # their clients left
    monkeypatch.setattr(service.state.redis.link, "CACHE_SECONDS", 0.01)
    assert set(await asyncio.gather(*(cache.get(str(key)) for key in range(20)))) == {None}
    redis_server.resume()
    monkeypatch.setattr(service.state.redis.link, "CACHE_SECONDS", TIMEOUT)
    link.came_up()
    found = await asyncio.gather(*(cache.get(str(key)) for key in range(50)))
    assert found == [CachedOutputs(((key / 50, 1 - key / 50),)) for key in range(50)]
    await link.close()


# the URL


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://localhost", "redis://x:secret@host:port", "redis://:sec/ret@host", "redis://h?secret=1"],
)
def test_url_that_is_none_is_named_without_its_password(url: str) -> None:
    with pytest.raises(InvalidOption, match=r"LOWFIRST_REDIS_URL is .*redis://") as invalid:
        RedisLink(url)
    assert "sec" not in invalid.value.message
    assert invalid.value.__cause__ is None
    assert invalid.value.__suppress_context__


def test_url_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(StoreUnavailable) as refused:
        RedisLink("redis://user:secret@127.0.0.1:1/0").check()
    message = refused.value.message
    assert message.startswith("LOWFIRST_REDIS_URL: 127.0.0.1:1 does not answer (")
    assert "LOWFIRST_REDIS_OPTIONAL" in message
    assert "secret" not in message


def test_wrong_password_is_told_at_the_start(redis_server: RedisServer) -> None:
    redis_server.client.config_set("requirepass", "right")
    with pytest.raises(StoreUnavailable, match="password") as refused:
        RedisLink(f"{redis_server.url}?password=wrong").check()
    assert "wrong" not in refused.value.message.replace("WRONGPASS", "")
    RedisLink(f"{redis_server.url}?password=right").check()


def test_url_that_answers_is_taken(redis_server: RedisServer) -> None:
    RedisLink(redis_server.url).check()


@asynccontextmanager
async def listing(server: RedisServer, name: str) -> AsyncIterator[RedisTargets]:
    """The started targets of one more server."""
    link = RedisLink(server.url)
    targets = RedisTargets(link)
    await targets.start(Target("192.0.2.7:9101", name))
    yield targets
    await targets.close()
    await link.close()


async def names(targets: RedisTargets) -> list[str]:
    return [each.replica for each in await targets.listed()]


async def test_replica_that_died_is_listed_no_more_and_the_others_stay(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.state.redis.targets, "LISTED_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(service.state.redis.targets, "LISTED_FOR_SECONDS", 2)
    link = RedisLink(redis_server.url)
    died = RedisTargets(link)
    async with listing(redis_server, "lives") as lives:
        await died.start(Target("192.0.2.7:9102", "died"))
        while await names(lives) != ["lives", "died"]:
            await asyncio.sleep(0.01)
        assert died._listing is not None
        died._listing.cancel()
        while await names(lives) != ["lives"]:
            await asyncio.sleep(0.01)
        await died.close()
    await link.close()


async def test_replica_that_takes_a_dead_ones_address_is_listed_in_its_place(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = RedisLink(redis_server.url)
    died = RedisTargets(link)
    await died.start(Target("192.0.2.7:9101", "who died"))
    assert died._listing is not None
    died._listing.cancel()
    monkeypatch.setattr(service.state.redis.targets, "LISTED_FOR_SECONDS", 16)  # as one second later
    async with listing(redis_server, "its heir") as heir:
        assert await names(heir) == ["its heir"]
    await link.close()


async def test_targets_come_back_with_redis(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.state.redis.targets, "LISTED_EVERY_SECONDS", 0.1)
    async with listing(redis_server, "one") as one:
        redis_server.kill()
        with pytest.raises(StoreUnavailable):
            await one.listed()
        redis_server.start()  # empty
        while await names(one) != ["one"]:
            await asyncio.sleep(0.01)
