"""The measurement of decoding, once, on small photographs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_format_is_measured_with_every_decoder(tmp_path: Path) -> None:
    out = tmp_path / "decode.json"
    command: list[str | Path] = [
        sys.executable,
        ROOT / "loadtest" / "decode.py",
        "--size",
        "64",
        "--repeats",
        "1",
        "--out",
        out,
    ]
    subprocess.run(command, check=True, capture_output=True)
    speeds = json.loads(out.read_text())["speeds"]
    assert [(speed["format"], speed["decoder"]) for speed in speeds] == [
        (kind, decoder) for kind in ("JPEG", "PNG", "WEBP") for decoder in ("Pillow", "torchvision", "decode")
    ]
    assert all(0 < speed["least"] <= speed["ms"] <= speed["most"] for speed in speeds)
