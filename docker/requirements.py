"""Write what pyproject.toml asks for into torch.txt, others.txt and ray.txt, for the layers of the image."""

from __future__ import annotations

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
asked = project["dependencies"] + project["optional-dependencies"]["openvino"]
of_torch = [each for each in asked if each.startswith("torch")]
ray = project["optional-dependencies"]["ray"]
Path("ray.txt").write_text("".join(f"{each}\n" for each in ray))
Path("torch.txt").write_text("".join(f"{each}\n" for each in of_torch))
Path("others.txt").write_text("".join(f"{each}\n" for each in asked if each not in of_torch))
