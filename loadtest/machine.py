"""Where a measurement was made."""

from __future__ import annotations

import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from loadtest.contenders.registry import PEERS

CPUINFO = Path("/proc/cpuinfo")
PACKAGES = ("torch", "openvino", *(peer.package for peer in PEERS.values()), "k6")


def machine() -> dict[str, object]:
    """Processor, cores this process may use, load of the last minute, time, versions of what is installed."""
    found = re.search(r"model name\s*: (.*)", CPUINFO.read_text()) if CPUINFO.exists() else None
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "processor": found[1] if found else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "versions": {name: known for name, known in versions.items() if known is not None},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
