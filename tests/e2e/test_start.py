"""A server that cannot start says why in a line, however many processes it has."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from service.store import WEIGHTS, read_spec, write_spec, write_weights
from tests.e2e.under_load import TIMEOUT


@pytest.mark.parametrize("processes", ["1", "2"])
def test_weights_that_give_no_finite_numbers_end_the_start_with_one_line(
    environment: dict[str, str], tiny_store: Path, tmp_path: Path, processes: str
) -> None:
    folder = Path(shutil.copytree(tiny_store / "tiny" / "1", tmp_path / "tiny" / "1"))
    scaled = {
        name: each * float("nan") if each.is_floating_point() else each
        for name, each in load_file(folder / WEIGHTS).items()
    }
    write_spec(folder, dataclasses.replace(read_spec(folder), weights_sha256=write_weights(folder, scaled)))
    ended = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve", "--processes", processes],
        env={**environment, "LOWFIRST_MODEL_STORE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "not finite" in line
    assert "Traceback" not in ended.stderr
