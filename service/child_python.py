"""Starts a Python process that works for this one: to decode an image, to prepare a model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO


def start(
    code: str,
    *arguments: str,
    environment: Mapping[str, str],
    stdin: int,
    output: int | IO[bytes],
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """A process that runs ``code``, with ``arguments`` in ``sys.argv[1:]``.

    It gets this process's environment without the server's settings, which contain keys, and this ``sys.path``,
    whatever it was set by. It ignores modules in the current folder, and Ctrl-C, which is meant for the server.

    Args:
        environment: variables to add.
        stdin: as in ``subprocess.Popen``. ``output``: the same for standard output and standard error.
        pass_fds: file descriptors that it keeps.

    Raises:
        OSError: it cannot be started.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOWFIRST_")}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments],
        env={**inherited, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), **environment},
        stdin=stdin,
        stdout=output,
        stderr=output,
        pass_fds=pass_fds,
        process_group=0,
    )
