"""Limits of an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """See the settings of the same names. Without decode threads the workers decode."""

    max_batch_size: int = 32
    feature_slots: int = 128
    workers: int = 1
    decode_threads: int = 0
    audit_probability: float = 0.0
    target_latency_seconds: float = 0.5
