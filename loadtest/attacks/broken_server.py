"""A server whose network fails on some images, as a command: white ones raise, on black ones the answer is NaN.

It is the real server in one process; nothing but the network's pass is changed.
"""

from __future__ import annotations

import sys

from torch import Tensor

from service.cli import main
from service.inference.predictor import Predictor
from service.networks.cascade import Carried

WHITE, BLACK = 255, 0

ORIGINAL = Predictor.run


def failing(self: Predictor, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
    """``Predictor.run``, but for images of one colour."""
    if _all(images, WHITE).any():
        raise RuntimeError("a white image")
    logits, handed_on = ORIGINAL(self, stage, images, carried)
    logits = logits.clone()
    logits[_all(images, BLACK)] = float("nan")
    return logits, handed_on


def _all(images: Tensor, value: int) -> Tensor:
    return (images == value).flatten(1).all(dim=1)


if __name__ == "__main__":
    Predictor.run = failing  # type: ignore[method-assign]
    sys.argv = ["lowfirst", "serve"]
    main()
