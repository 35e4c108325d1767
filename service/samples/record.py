"""What is logged of one image, and what is told of it later."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

DIGEST_BYTES = 8  # as in service.training.trained_on: what a model was trained on is known by such digests


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and its answer.

    Attributes:
        time: when it was answered, in seconds since 1970.
        request_id, index: of its request, and its place among the images of that.
        image_sha256, image_digest, image_bytes: of the encoded image: SHA-256, BLAKE2b of 8 bytes (both in hex), size.
        image: itself; None unless images are kept and it is small enough.
        model: ``name/version``. ``weights_sha256``: of its weights.
        runtime, precision, temperatures: that its outputs were computed with; a temperature per stage.
        outputs: probabilities (K,) of each stage that ran, in order: also of those that ran behind the answer.
        answer, label: the class that was answered, by index and by name.
        exit, stage: the stage that answered, by name and by index. ``reason``: why it did.
        confidence: of the last stage that could have ended it early. ``threshold``: what that was compared with.
        drawn: whether it was chosen on its arrival to have all stages, however it ends: see ``engine.sampling``.
        ms: from the request's head to the answer.
    """

    time: float
    request_id: str
    index: int
    model: str
    weights_sha256: str
    runtime: str
    precision: str
    temperatures: tuple[float, ...]
    outputs: tuple[Floats, ...]
    answer: int
    label: str
    exit: str
    stage: int
    reason: str
    confidence: float
    threshold: float
    drawn: bool
    ms: float
    image_sha256: str = ""
    image_digest: str = ""
    image_bytes: int = 0
    image: bytes | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the output of every stage is known."""
        return len(self.outputs) == len(self.temperatures)

    @property
    def size(self) -> int:
        """Bytes, about."""
        return 600 + sum(each.nbytes for each in self.outputs) + len(self.image or b"")

    def of_image(self, body: bytes, most: int) -> Self:
        """With what is known of the encoded image ``body``, which is kept if it has at most ``most`` bytes."""
        return replace(
            self,
            image_sha256=hashlib.sha256(body).hexdigest(),
            image_digest=hashlib.blake2b(body, digest_size=DIGEST_BYTES).hexdigest(),
            image_bytes=len(body),
            image=body if len(body) <= most else None,
        )

    def as_row(self) -> dict[str, Any]:
        """Its fields, for a file."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Sample:
        """From a row of a file. Raises KeyError, TypeError or ValueError: it is none."""
        image = row["image"]
        known = {each.name: row[each.name] for each in fields(cls)}
        return cls(
            **{
                **known,
                "temperatures": tuple(map(float, row["temperatures"])),
                "outputs": tuple(np.asarray(each, dtype=np.float32) for each in row["outputs"]),
                "image": base64.b64decode(image) if isinstance(image, str) else image,
            }
        )


@dataclass(frozen=True, slots=True)
class Truth:
    """What an image shows.

    Attributes:
        time: when that was told, in seconds since 1970.
        request_id, index, of: the ``Sample``'s, ``of`` being its ``time``: clients may use an id twice.
        model: that answered.
        answer, label: the true class, by index and by name.
    """

    time: float
    request_id: str
    index: int
    of: float
    model: str
    answer: int
    label: str

    def as_row(self) -> dict[str, Any]:
        """Its fields, for a file."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Truth:
        """From a row of a file. Raises KeyError: it is none."""
        return cls(**{each.name: row[each.name] for each in fields(cls)})
