"""The only metadata that is read of a photograph: its orientation."""

from __future__ import annotations

import struct

ORIENTATION = 0x0112
BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}

# Types of a TIFF field that an orientation may have, and how many of the field's four bytes they take.
TYPES = {1: "B", 3: "H", 4: "I"}


def orientation(exif: bytes) -> int:
    """1 to 8 as the first directory of ``exif`` has it; 1 where that is missing or broken.

    Only that directory's entries are looked at, in one pass, whatever they point to. A photograph is worth more than
    its metadata: nothing is raised.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = BYTE_ORDERS.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (at,) = struct.unpack_from(order + "I", tiff, 4)
    if at + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(order + "H", tiff, at)
    entries = tiff[at + 2 : at + 2 + 12 * count]
    for tag, kind, _, value in struct.iter_unpack(order + "HHI4s", entries[: len(entries) // 12 * 12]):
        if tag == ORIENTATION and kind in TYPES:
            (found,) = struct.unpack_from(order + TYPES[kind], value)
            return int(found) if 1 <= found <= 8 else 1
    return 1
