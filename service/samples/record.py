"""The log's record of one image, and of its true label."""

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
    """One image with its answer.

    Attributes:
        time: when it was answered, in seconds since 1970.
        request_id, index: id of the request, and position of the image in it.
        image_sha256, image_digest, image_bytes: SHA-256, BLAKE2b of 8 bytes (both in hex) and size of the encoded
            image.
        image: the encoded image; None unless images are logged and this one is small enough.
        model: ``name/version``. ``weights_sha256``: SHA-256 of its weights.
        runtime, precision, temperatures: those with which the outputs were computed; one temperature per stage.
        outputs: probabilities (K,) of each stage that ran, in order, including stages that ran after the answer.
        answer, label: the class that was answered, by index and by name.
        exit, stage: the stage that answered, by name and by index. ``reason``: why this stage answered.
        confidence: that of the latest stage at which the image could exit early. ``threshold``: the value it was
            compared with.
        drawn: whether the image was sampled on arrival to run all stages, at whichever it exits; see
            ``engine.sampling``.
        ms: milliseconds from the request's head to the answer.
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
        """Whether the outputs of all stages are known."""
        return len(self.outputs) == len(self.temperatures)

    @property
    def size(self) -> int:
        """Approximate size in bytes."""
        return 600 + sum(each.nbytes for each in self.outputs) + len(self.image or b"")

    def of_image(self, body: bytes, most: int) -> Self:
        """This sample with the fields of the encoded image ``body``, which is included if it has at most ``most``
        bytes.
        """
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
        """The sample in a row of a file. Raises KeyError, TypeError or ValueError if the row is invalid."""
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
    """The true label of an image.

    Attributes:
        time: when it was reported, in seconds since 1970.
        request_id, index, of: those of the ``Sample``. ``of`` is its ``time``, because clients may use an id twice.
        model: the model that answered.
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
        """The true label in a row of a file. Raises KeyError if the row is invalid."""
        return cls(**{each.name: row[each.name] for each in fields(cls)})
