"""JavaScript that tests and documents need and the product does not: fetched from npm once, in a fixed version."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

# Package and version: the file of it that is wanted, and that file's SHA-256.
UPLOT = ("uplot@1.6.32", "dist/uPlot.iife.min.js", "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f")
AXE = ("axe-core@4.10.3", "axe.min.js", "880970c081707360e64f34cea25ff91892f5bc95675b0776925b9709dd8a68bb")


def is_there() -> bool:
    """Whether this machine has npm."""
    return shutil.which("npm") is not None


def script(package: tuple[str, str, str]) -> str:
    """The text of a package's file, kept beside other temporary files for the next time.

    Raises:
        subprocess.CalledProcessError: npm cannot fetch it.
        ValueError: it is not the file that was reviewed.
    """
    name, file, sha256 = package
    folder = Path(tempfile.gettempdir()) / f"lowfirst-npm-{name}"
    path = folder / "node_modules" / name.partition("@")[0] / file
    if not path.exists():
        options = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(["npm", "install", "--prefix", folder, *options, name], check=True, timeout=120)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not what was reviewed; its SHA-256 must be {sha256}")
    return content.decode()
