"""The number of connections that the system allows a process."""

from __future__ import annotations

import resource
from contextlib import suppress

# Most descriptors of a serving process.
WANTED = 65_536

# Of these, reserved for other uses: refused connections, files, sockets to Redis and other processes.
RESERVED = 192


def most_connections(asked: int | None) -> int:
    """``asked``, or as many as the system allows if that is None or more. The limit on descriptors is raised as far
    as possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    fit = WANTED if soft == resource.RLIM_INFINITY else soft
    fit = max(1, fit - RESERVED)
    return fit if asked is None else min(asked, fit)
