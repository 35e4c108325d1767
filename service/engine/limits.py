"""Bounds of an engine."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """See the settings of the same names; times in seconds. Without decode threads the workers decode."""

    max_batch_size: int = 32
    max_images_in_flight: int = 256
    max_bytes_in_flight: int = 256 * 1024 * 1024
    feature_slots: int = 128
    workers: int = 1
    decode_threads: int = 0
    audit_probability: float = 0.0
    target_latency: float = 0.5
    max_queue: float = math.inf
