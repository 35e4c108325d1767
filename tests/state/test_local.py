"""The config that the parent of several processes holds."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from typing import Any

import pytest

from service.errors import StoreUnavailable
from service.state.base import RuntimeConfig
from service.state.line import Line, LineClosed
from service.state.local import LocalConfigStore
from tests.state.local import START, local_configs

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def serving(version: int) -> Any:
    return lambda config: dataclasses.replace(config, models={**config.models, "tiny": version})


async def test_a_change_has_reached_every_process_once_it_is_answered() -> None:
    async with local_configs(3) as stores:
        for store in stores:
            await store.start()
        changed = await stores[1].update(serving(7))
        assert [store.current for store in stores] == [changed] * 3


async def test_a_process_that_comes_later_has_what_stands() -> None:
    async with local_configs(2) as (first, second):
        await first.start()
        changed = await first.update(serving(2))
        await second.start()
        assert second.current == changed


async def test_concurrent_changes_of_all_processes_are_all_applied_once() -> None:
    async with local_configs(3) as stores:
        for store in stores:
            await store.start()

        def counted(config: RuntimeConfig) -> RuntimeConfig:
            return dataclasses.replace(config, models={**config.models, "tiny": config.models["tiny"] + 1})

        made = await asyncio.gather(*(store.update(counted) for store in stores for _ in range(6)))
        assert sorted(config.version for config in made) == list(range(2, 20))
        assert [store.current.models["tiny"] for store in stores] == [START.models["tiny"] + 18] * 3


async def test_the_one_that_announces_a_model_hears_who_has_prepared_it() -> None:
    models = {"tiny": 2, "other": 3}
    async with local_configs(3) as (asker, *others):
        for store in (asker, *others):
            await store.start()
        await asker.announce(models)
        waiting = asyncio.create_task(asker.others_prepared())
        for other in others:
            await _until(lambda other=other: other.announced == models)
            assert not waiting.done()
            await other.tell_prepared(other.announced)
        async with asyncio.timeout(10):
            await waiting
        assert asker.announced == {}


async def test_who_changed_the_models_hears_who_serves_them_and_waits_for_nobody_that_is_gone() -> None:
    async with local_configs(4) as (asker, follower, failing, dying):
        for store in (asker, follower, failing, dying):
            await store.start()
        await asker.announce({"tiny": 2})
        await failing.tell_prepared({"tiny": 2}, "no room")
        await follower.tell_prepared({"tiny": 2})
        waiting = asyncio.create_task(asker.others_prepared())
        dying._line.close()
        async with asyncio.timeout(10):
            assert await waiting == ["no room"]
        changed = await asker.update(serving(2))
        waiting_on = asyncio.create_task(asker.others_serving(changed.version))
        await follower.tell_serving(changed.version - 1)
        await failing.tell_serving(changed.version)
        await asyncio.sleep(0)
        assert not waiting_on.done()
        await follower.tell_serving(changed.version)
        async with asyncio.timeout(10):
            await waiting_on


async def test_a_process_that_joined_during_a_switch_is_waited_for_too() -> None:
    async with local_configs(2) as (asker, late):
        await asker.start()
        await asker.announce({"tiny": 2})
        await asker.others_prepared()
        await late.start()
        changed = await asker.update(serving(2))
        waiting = asyncio.create_task(asker.others_serving(changed.version))
        await asker._line.ask("config.nothing")  # by when all that was said has been heard
        assert not waiting.done()
        await late.tell_serving(changed.version)
        async with asyncio.timeout(10):
            await waiting


async def test_a_turn_goes_from_process_to_process_and_that_of_one_that_ended_to_the_next() -> None:
    async with local_configs(3) as (first, second, third):
        for store in (first, second, third):
            await store.start()
        had: list[str] = []

        async def take(name: str, store: LocalConfigStore) -> None:
            async with store.turn():
                had.append(name)

        async with first.turn():
            ended = asyncio.create_task(take("second", second))
            await second._line.ask("config.announce", {})  # by when it has been heard
            waiting = asyncio.create_task(take("third", third))
            await third._line.ask("config.announce", {})
            assert not had
            second._line.close()
            await asyncio.gather(ended, return_exceptions=True)
        async with asyncio.timeout(10):
            await waiting
        assert had[-1] == "third"


async def test_without_its_parent_the_config_stays_and_cannot_be_changed() -> None:
    async with local_configs(1) as (store,):
        await store.start()
        assert store.is_up
    await _until(lambda: not store.is_up)
    with pytest.raises(StoreUnavailable):
        await store.update(serving(2))
    assert store.current == START


async def test_a_store_that_finds_no_parent_starts_with_its_own() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    line = Line(theirs, _deaf)
    await line.open()
    await line.wait_closed()
    store = LocalConfigStore(line, START)
    await store.start()
    assert store.current == START


async def test_a_question_that_nobody_will_answer_ends_with_the_line() -> None:
    ours, theirs = socket.socketpair()
    asking, silent = Line(ours, _deaf), Line(theirs, _mute)
    await asking.open()
    await silent.open()
    question = asyncio.create_task(asking.ask("anything"))
    await asyncio.sleep(0)
    silent.close()
    with pytest.raises(LineClosed):
        await question


async def test_a_long_message_arrives_whole_and_answers_find_their_questions() -> None:
    ours, theirs = socket.socketpair()
    asking, answering = Line(ours, _deaf), Line(theirs, _echo)
    await asking.open()
    await answering.open()
    bodies = ["x" * 1_000_000, {"a": [1, None, 0.5]}, 3]
    assert await asyncio.gather(*(asking.ask("echo", body) for body in bodies)) == bodies
    asking.close()
    await answering.wait_closed()


async def _deaf(*_: Any) -> None:
    pass


async def _mute(*_: Any) -> None:
    await asyncio.Event().wait()


async def _echo(_: str, body: Any) -> Any:
    return body


async def _until(reached: Any) -> None:
    async with asyncio.timeout(10):
        while not reached():
            await asyncio.sleep(0.001)
