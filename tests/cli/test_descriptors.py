"""Connections and the limit on descriptors."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service.cli.descriptors import RESERVED, WANTED

CODE = """
import resource, sys
soft, hard, asked = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from service.cli.descriptors import most_connections
print(most_connections(asked or None), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "asked", "connections", "raised"),
    [
        (256, 256, 0, 256 - RESERVED, 256),
        (256, 512, 0, 512 - RESERVED, 512),
        (256, 512, 8, 8, 512),
        (256, 256, 1000, 256 - RESERVED, 256),
        (64, 64, 0, 1, 64),
    ],
)
def test_connections_fit_in_the_descriptors_that_there_may_be(
    soft: int, hard: int, asked: int, connections: int, raised: int
) -> None:
    given = [sys.executable, "-c", CODE, *map(str, (soft, hard, asked))]
    told = subprocess.run(given, capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.split() == [str(connections), str(raised)]
    assert raised < WANTED
