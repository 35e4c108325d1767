"""Encoded pictures of every format, drawn here, and files made of them by damage that can be repeated."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
from PIL import Image

FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("RGB", "JPEG", {}),
    "progressive JPEG": ("RGB", "JPEG", {"progressive": True}),
    "JPEG with restarts": ("RGB", "JPEG", {"restart_marker_rows": 1}),
    "grey JPEG": ("L", "JPEG", {}),
    "CMYK JPEG": ("CMYK", "JPEG", {}),
    "PNG": ("RGB", "PNG", {}),
    "PNG with alpha": ("RGBA", "PNG", {}),
    "palette PNG": ("P", "PNG", {}),
    "16-bit PNG": ("I;16", "PNG", {}),
    "GIF": ("P", "GIF", {}),
    "WebP": ("RGB", "WEBP", {}),
    "lossless WebP": ("RGBA", "WEBP", {"lossless": True}),
    "BMP": ("RGB", "BMP", {}),
    "palette BMP": ("P", "BMP", {}),
}

SIZES = ((40, 30), (300, 240))
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def pictures(seed: int) -> dict[str, bytes]:
    """Whole files, by what they are."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    found = {}
    for name, (mode, kind, options) in FORMATS.items():
        for size in SIZES:
            image = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
            file = io.BytesIO()
            (image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)).save(file, kind, **options)
            found[f"{name} {size[0]}x{size[1]}"] = file.getvalue()
    return found


def mutants(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged files with what each was; the same for the same seed."""
    random = Random(seed)
    whole = list(pictures(seed).items())
    for number in range(count):
        name, data = whole[number % len(whole)]
        for _ in range(random.randint(1, 4)):
            data = random.choice(WAYS)(random, data, random.choice(whole)[1])
        yield name, data


def _place(random: Random, data: bytes) -> int:
    """More often in the header."""
    return int(random.random() ** random.choice((1, 4)) * len(data))


def _flip(random: Random, data: bytes, _: bytes) -> bytes:
    changed = bytearray(data)
    for _time in range(random.choice((1, 1, 3, 30)) if data else 0):
        changed[_place(random, data)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _number(random: Random, data: bytes, _: bytes) -> bytes:
    """A number at the edge of what it may be, where a length or a size may stand."""
    form = random.choice(("B", ">H", "<H", ">I", "<I"))
    value = random.choice(EDGES) & ((1 << 8 * struct.calcsize(form)) - 1)
    at = _place(random, data)
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def _cut(random: Random, data: bytes, _: bytes) -> bytes:
    return data[: random.randint(0, len(data))]


def _remove(random: Random, data: bytes, _: bytes) -> bytes:
    at = _place(random, data)
    return data[:at] + data[at + random.choice((1, 2, 7, 64, 1000)) :]


def _insert(random: Random, data: bytes, _: bytes) -> bytes:
    at = _place(random, data)
    return data[:at] + random.randbytes(random.choice((1, 2, 8, 100))) + data[at:]


def _repeat(random: Random, data: bytes, _: bytes) -> bytes:
    at, size = _place(random, data), random.choice((2, 12, 100, 1000))
    return data[:at] + data[at : at + size] * random.choice((2, 10, 300)) + data[at + size :]


def _splice(random: Random, data: bytes, other: bytes) -> bytes:
    """The head of one file, the rest of another."""
    return data[: _place(random, data)] + other[_place(random, other) :]


def _blank(random: Random, data: bytes, _: bytes) -> bytes:
    at, size = _place(random, data), random.choice((4, 40, 400))
    return data[:at] + random.choice((b"\0", b"\xff")) * size + data[at + size :]


WAYS = (_flip, _number, _cut, _remove, _insert, _repeat, _splice, _blank)
