"""The parent's listeners, and the way of connections to its children."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager

import pytest

from service.errors import InvalidOption
from service.processes.reception import MAIN, OWN, Handover, Reception, bind, received

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Child:
    """Takes connections as a process would, when it is asked to."""

    def __init__(self) -> None:
        ours, self._end = socket.socketpair()
        self._end.setblocking(False)
        self.handover = Handover(ours)
        self.taken: list[tuple[bytes, socket.socket]] = []

    def take(self) -> int:
        """All that were handed over so far; how many they are by now."""
        while True:
            try:
                name, descriptors, *_ = socket.recv_fds(self._end, 1, 1)
            except BlockingIOError:
                return len(self.taken)
            if not name:
                return len(self.taken)
            self.taken.append((name, received(descriptors[0])))

    def close_one(self) -> None:
        self.taken.pop()[1].close()
        self._end.send(b".")

    def die(self) -> None:
        for _, each in self.taken:
            each.close()
        self._end.close()


@asynccontextmanager
async def receiving(children: Sequence[Child]) -> AsyncIterator[tuple[Reception, tuple[str, int]]]:
    """A reception that is open, and its address; it hands over to those who are in ``children`` at the time."""
    listeners = await bind("127.0.0.1", 0)
    address: tuple[str, int] = listeners[0].getsockname()
    reception = Reception({MAIN: listeners}, lambda: [child.handover for child in children])
    reception.open()
    yield reception, address
    await reception.close()
    for child in children:
        child.die()
        child.handover.close()


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not reached():
            await asyncio.sleep(0.001)


async def test_each_connection_goes_where_the_fewest_are() -> None:
    with ExitStack() as stack:
        first, second = Child(), Child()
        async with receiving([first, second]) as (_, address):

            def connect() -> None:
                stack.enter_context(socket.create_connection(address))

            for count in range(1, 17):
                connect()
                await until(lambda count=count: first.take() + second.take() == count)  # type: ignore[misc]
            assert (len(first.taken), len(second.taken)) == (8, 8)
            for _ in range(3):
                second.close_one()
            await until(lambda: second.handover.connections == 5)
            for count in range(14, 17):
                connect()
                await until(lambda count=count: first.take() + second.take() == count)  # type: ignore[misc]
            assert (len(first.taken), len(second.taken)) == (8, 8)


async def test_one_after_another_they_take_turns() -> None:
    first, second = Child(), Child()
    async with receiving([first, second]) as (_, address):
        for index in range(6):
            with socket.create_connection(address):
                child = (first, second)[index % 2]
                await until(lambda child=child: child.take() == 1)  # type: ignore[misc]
            child.close_one()
            await until(lambda child=child: child.handover.connections == 0)  # type: ignore[misc]


async def test_a_process_that_is_gone_is_passed_over() -> None:
    gone, left = Child(), Child()
    async with receiving([gone, left]) as (_, address):
        gone.die()
        with socket.create_connection(address), socket.create_connection(address):
            await until(lambda: left.take() == 2)
    assert gone.handover.connections == 0


async def test_connections_wait_until_a_process_can_take_them() -> None:
    children: list[Child] = []
    async with receiving(children) as (_, address):
        with ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(socket.create_connection(address))
            await asyncio.sleep(0)
            late = Child()
            children.append(late)
            await until(lambda: late.take() == 5)


async def test_what_the_kernel_accepted_is_handed_over_before_the_listener_closes() -> None:
    child = Child()
    async with receiving([child]) as (reception, address):
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(socket.create_connection(address))
            await reception.close()
            assert child.take() == 20
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)


async def test_what_the_kernel_accepted_while_no_process_was_free_is_handed_over_too() -> None:
    children: list[Child] = []
    async with receiving(children) as (reception, address):
        with ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(socket.create_connection(address))
            for _ in range(3):
                await asyncio.sleep(0)  # turns of the loop, in which it finds that nobody takes the first
            late = Child()
            children.append(late)
            await reception.close()
            assert late.take() == 5


async def test_connections_say_which_listener_they_came_from() -> None:
    child = Child()
    listeners = {MAIN: await bind("127.0.0.1", 0), OWN: await bind("127.0.0.1", 0)}
    addresses = {name: each[0].getsockname() for name, each in listeners.items()}
    reception = Reception(listeners, lambda: [child.handover])
    reception.open()
    for count, name in enumerate((OWN, MAIN), start=1):
        with socket.create_connection(addresses[name]):
            await until(lambda count=count: child.take() == count)  # type: ignore[misc]
        assert child.taken[-1][0] == name
    await reception.close()
    child.die()
    child.handover.close()


async def test_small_answers_are_never_held_back() -> None:
    child = Child()
    async with receiving([child]) as (_, address):
        with socket.create_connection(address):
            await until(lambda: child.take() == 1)
            connection = child.taken[0][1]
            assert connection.proto == socket.IPPROTO_TCP  # else asyncio would leave Nagle's algorithm on
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_port_that_is_taken_is_an_error() -> None:
    (listener,) = await bind("127.0.0.1", 0)
    with listener:
        listener.listen()
        with pytest.raises(InvalidOption, match=r"LOWFIRST_PORT is .* in use"):
            await bind(*listener.getsockname())


async def test_a_name_is_bound_at_each_of_its_addresses() -> None:
    listeners = await bind("", 0)
    assert listeners
    assert {each.proto for each in listeners} == {socket.IPPROTO_TCP}
    for each in listeners:
        each.close()
