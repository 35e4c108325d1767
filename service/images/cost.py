"""Worst-case decoding time of a picture, from the walk over its container.

Seconds of one core: per byte the cost of noise, per sample or pixel the cost of flat colour, measured on a core that
decodes a 500x375 JPEG in 0.7 ms, and rounded up. Ordinary photographs take a third to two thirds of it.
"""

from __future__ import annotations

NANOSECOND = 1e-9


def jpeg(size: int, samples: float, scans: int, is_progressive: bool) -> float:
    """Each sample is transformed once, and each scan may visit every one of them to change nothing."""
    per_byte, per_sample = (25, 2.5) if is_progressive else (5, 1.5)
    return NANOSECOND * (per_byte * size + per_sample * samples + 0.1 * scans * samples)


def png(size: int, raw_bytes: int) -> float:
    """Paeth's filter is the dearest; a picture whose last row is black is inflated twice."""
    return NANOSECOND * (2.5 * size + 7 * raw_bytes)


def webp(size: int, pixels: int, is_lossless: bool) -> float:
    per_byte, per_pixel = (6, 25) if is_lossless else (60, 12)
    return NANOSECOND * (per_byte * size + per_pixel * pixels)


def gif(size: int, pixels: int) -> float:
    return NANOSECOND * (6 * size + 10 * pixels)


def bmp(size: int, pixels: int) -> float:
    return NANOSECOND * (1 * size + 10 * pixels)


def run_length(size: int, pixels: int) -> float:
    """Pillow reads it in Python, command by command, and fills the rest of a row byte by byte."""
    return NANOSECOND * (150 * size + 70 * pixels)
