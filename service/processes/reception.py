"""The parent's listeners: it accepts connections and passes each to the process with the fewest."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from service.errors import InvalidOption
from service.log import logger

BACKLOG = 2048
ACCEPTED_AT_ONCE = 64

# How long before another try where no process takes a connection, or this one has no file descriptor left for it.
AGAIN_SECONDS = 0.01
OUT_OF_FILES_SECONDS = 1.0

OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

MAIN, OWN = b"m", b"o"  # which listener a connection came from: the server's, or that of LOWFIRST_METRICS_PORT


class Handover:
    """Passes connections to one process, and counts those that are open there.

    Args:
        end: one end of a pair of Unix stream sockets, which this object closes. Each connection is sent with one byte,
            which names its listener. For each closed connection one byte comes back.
    """

    def __init__(self, end: socket.socket) -> None:
        self.connections = 0
        self.last = 0  # when it got its latest, in connections
        self._end = end
        end.setblocking(False)
        asyncio.get_running_loop().add_reader(end, self._count_closed)

    def give(self, listener: bytes, connection: socket.socket) -> bool:
        """Pass ``connection`` on; then the caller may close it. Returns False if the process is busy or has ended."""
        try:
            socket.send_fds(self._end, [listener], [connection.fileno()])
        except OSError:
            return False
        self.connections += 1
        return True

    def end(self) -> None:
        """Tell the process that no more connections follow."""
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket, after the process has ended."""
        asyncio.get_running_loop().remove_reader(self._end)
        self._end.close()

    def _count_closed(self) -> None:
        try:
            closed = self._end.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            closed = b""
        self.connections -= len(closed)
        if not closed:  # it is gone
            asyncio.get_running_loop().remove_reader(self._end)


class Reception:
    """Accepts connections while a process can take them.

    Args:
        listeners: bound sockets by purpose; this object closes them.
        handovers: those of the ready processes, or if none is ready, of those that were.
    """

    def __init__(
        self, listeners: Mapping[bytes, Sequence[socket.socket]], handovers: Callable[[], Iterable[Handover]]
    ) -> None:
        self._listeners = [(name, each) for name, several in listeners.items() for each in several]
        self._handovers = handovers
        self._waiting: deque[tuple[bytes, socket.socket]] = deque()
        self._given = 0

    def open(self) -> None:
        """Start to listen."""
        for _, listener in self._listeners:
            listener.setblocking(False)
            listener.listen(BACKLOG)
        self._resume()

    async def close(self) -> None:
        """Pass on all connections that the kernel has accepted, and stop listening."""
        self._pause()
        for name, listener in self._listeners:
            self._waiting.extend((name, connection) for connection in _accepted(listener))
            listener.close()
        self._listeners.clear()
        self._serve_waiting()
        while self._waiting and any(True for _ in self._handovers()):
            await asyncio.sleep(AGAIN_SECONDS)
            self._serve_waiting()
        for _, connection in self._waiting:
            connection.close()

    def _accept(self, name: bytes, listener: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in OUT_OF_FILES:
                    raise
                logger.error("no connection can be accepted: %s", error)
                self._pause()
                asyncio.get_running_loop().call_later(OUT_OF_FILES_SECONDS, self._again)
                return
            self._waiting.append((name, connection))
            self._serve_waiting()
            if self._waiting:
                self._pause()
                asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._again)
                return

    def _serve_waiting(self) -> None:
        while self._waiting:
            name, connection = self._waiting[0]
            if not self._give(name, connection):
                return
            self._waiting.popleft()
            connection.close()

    def _give(self, name: bytes, connection: socket.socket) -> bool:
        for handover in sorted(self._handovers(), key=lambda each: (each.connections, each.last)):
            if handover.give(name, connection):
                self._given += 1
                handover.last = self._given
                return True
        return False

    def _again(self) -> None:
        if not self._listeners:
            return
        self._serve_waiting()
        if self._waiting:
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._again)
        else:
            self._resume()

    def _resume(self) -> None:
        for name, listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, name, listener)

    def _pause(self) -> None:
        for _, listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """All connections that wait in the kernel for ``listener``, as far as there are file descriptors for them."""
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            yield connection


async def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of ``host``, as in ``asyncio``'s servers. They do not listen yet.

    They name TCP as their protocol, because asyncio sets TCP_NODELAY only on such sockets.

    Raises:
        InvalidOption: another program uses the address, or this user may not listen there.
    """
    try:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
    except OSError as error:
        why = error.strerror or str(error)
        raise InvalidOption("LOWFIRST_PORT", port, f"a free port at {host} ({why})") from error
    bound = [socket.socket(each.family, each.type, each.proto, socket.dup(each.fileno())) for each in server.sockets]
    server.close()
    return bound


def free(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """The family and address of a port that nobody uses, not even with SO_REUSEPORT. Raises OSError."""
    family, *_, where = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    address = str(where[0]), int(where[1])
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
    return family, address


def hold(host: str, port: int) -> socket.socket:
    """A socket that reserves a port for this user's processes, which share it (SO_REUSEPORT).

    It never listens, so connections go to the sockets that do. Raises OSError if the port is in use.
    """
    family, address = free(host, port)  # or another server that shares it too would be joined unnoticed
    holder = socket.socket(family)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(address)
    return holder


def received(descriptor: int) -> socket.socket:
    """A connection that was passed on, prepared for asyncio. Raises OSError if its client has already disconnected."""
    connection = socket.socket(fileno=descriptor)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        connection.close()
        raise
    return connection
