"""torchvision's compiled decoders without the rest of torchvision, which takes a second and 90 MB of every process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = "image*.so"  # what torchvision loads as it is imported; its name differs between versions


def webp_decoder() -> Callable[[Tensor, int], Tensor] | None:
    """``torchvision.io.decode_webp`` of bytes and a mode; None where torchvision comes without it."""
    package = find_spec("torchvision")
    for folder in (package and package.submodule_search_locations) or ():
        for library in Path(folder).glob(LIBRARY):
            with suppress(OSError):
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    return getattr(torch.ops.image, "decode_webp", None)
