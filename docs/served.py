"""Servers that the pictures in the documents are taken of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def served(**settings: str) -> Iterator[str]:
    """``lowfirst serve`` with the shipped model on a free port: its host:port. It is stopped at the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOWFIRST_")}
    environment |= {f"LOWFIRST_{name.upper()}": value for name, value in {"port": "0", **settings}.items()}
    command = [sys.executable, "-m", "service.cli", "serve"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        told = (re.search(r"listening on http://(\S+)", line) for line in process.stderr)
        address = next((found[1] for found in told if found), None)
        if address is None:
            raise RuntimeError("the server did not come up")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # what it writes must not fill the pipe
        yield address
    finally:
        process.terminate()
        process.wait()
