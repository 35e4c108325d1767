"""Split requirements/ by the layers of the image, which install each file without looking for what else it takes.

torch.txt is PyTorch's ordinary build and what that alone takes, pytorch.txt names the two packages for another index,
whose files have other hashes; others.txt is the rest of the server's, ray.txt what Ray adds.
"""

from __future__ import annotations

import re
from pathlib import Path

LOCKED = re.compile(r"^[a-z].*(?:\n +--hash=.*)+\n", re.MULTILINE)

serve, ray = (LOCKED.findall(Path("requirements", name).read_text()) for name in ("serve.txt", "ray.txt"))
torch = [each for each in serve if re.match("torch|triton|nvidia-|cuda-", each)]
pytorch = [each.split()[0] + "\n" for each in torch if each.startswith("torch")]
Path("torch.txt").write_text("".join(torch))
Path("pytorch.txt").write_text("".join(pytorch))
Path("others.txt").write_text("".join(each for each in serve if each not in torch))
Path("ray.txt").write_text("".join(each for each in ray if each not in serve))
