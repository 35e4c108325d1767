"""PNG: the chunks that make pixels, their checksums, and whether the rows are there."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from service.images import cost
from service.images.formats.exif import orientation
from service.images.formats.picture import Picture, check_parts, check_size, corrupt, cut_short

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}

# Adam7: the first column and row of each pass, and the steps between them.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

# What is inflated at once, to count rows: at most a thousand times as much comes of it.
PIECE = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Png(Picture):
    """Attributes: raw_bytes: of all rows once inflated, filter bytes and passes included."""

    raw_bytes: int

    def check_rows(self, image: Image.Image) -> None:
        """Raises: InvalidImage: the stream ends before the last row, which Pillow passes over.

        Pillow leaves zeros where no row came, so the rows are counted only where the last is all zeros: black, or the
        first colour of the palette. The last row of an interlaced picture need not be the last to come.
        """
        last = image.crop((0, image.height - 1, image.width, image.height))
        is_interlaced = self.encoded[28] != 0  # the last byte of IHDR
        if not is_interlaced and last.tobytes().strip(b"\0"):
            return
        inflated, inflater = 0, zlib.decompressobj()
        for chunk in _chunks(self.encoded):
            for at in range(0, len(chunk.body) if chunk.kind == b"IDAT" else 0, PIECE):
                inflated += len(inflater.decompress(chunk.body[at : at + PIECE]))
                if inflated >= self.raw_bytes:
                    return
        raise cut_short(self.encoded)


@dataclass(frozen=True, slots=True)
class _Chunk:
    kind: bytes
    body: memoryview
    whole: memoryview | None  # with length, kind and checksum; None of one that is cut


def read(data: bytes) -> Png:
    """Walk the chunks and keep those of the pixels.

    Raises:
        ImageTooLarge: too many pixels or chunks.
        InvalidImage: no header or pixels, or a checksum of what is kept does not hold.
    """
    header = palette = transparent = exif = b""
    rows: list[bytes | memoryview] = []
    for chunk in _chunks(data):
        if chunk.kind == b"IDAT":  # of a cut one what is there
            rows.append(_chunk(b"IDAT", chunk.body) if chunk.whole is None else chunk.whole)
        elif chunk.kind == b"IHDR" and not header:
            header = bytes(chunk.body)
        elif chunk.kind == b"PLTE":
            palette = bytes(chunk.body)
        elif chunk.kind == b"tRNS":
            transparent = bytes(chunk.body)
        elif chunk.kind == b"eXIf":
            exif = exif or bytes(chunk.body)
        elif rows and chunk.kind == b"IEND":
            break
    if not rows:
        raise cut_short(data)
    if len(header) != 13:
        raise corrupt("the header of a PNG is missing")
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    check_size(width, height)
    if colour not in CHANNELS:
        raise corrupt(f"colour type {colour} of a PNG does not exist")
    head = [SIGNATURE, _chunk(b"IHDR", header)]
    if palette:
        head.append(_chunk(b"PLTE", palette))
    if transparent := _transparent(transparent, depth, colour):
        head.append(_chunk(b"tRNS", transparent))
    raw_bytes = _raw_bytes(width, height, depth * CHANNELS[colour], bool(interlace))
    encoded = b"".join((*head, *rows, _chunk(b"IEND", b"")))
    return Png(
        kind=f"PNG of {depth} bits and {CHANNELS[colour]} channels",
        width=width,
        height=height,
        encoded=encoded,
        orientation=orientation(exif) if exif else 1,
        seconds=cost.png(len(encoded), raw_bytes),
        raw_bytes=raw_bytes,
    )


def _chunks(data: bytes) -> Iterator[_Chunk]:
    view, at, count = memoryview(data), len(SIGNATURE), 0
    while at + 8 <= len(data):
        count += 1
        check_parts(count, "chunks")
        begin, kind, start = at, data[at + 4 : at + 8], at + 8
        end = start + int.from_bytes(data[at : at + 4], "big")
        at = end + 4
        is_whole = at <= len(data)
        # what pixels are made of; text may be as broken as it likes
        is_checked = is_whole and kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
        if is_checked and zlib.crc32(view[begin + 4 : end]) != int.from_bytes(data[end:at], "big"):
            raise corrupt(f"the checksum of a PNG's chunk {kind.decode()} is wrong")
        yield _Chunk(kind, view[start:end], view[begin:at] if is_whole else None)


def _chunk(kind: bytes, body: bytes | memoryview) -> bytes:
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))))


def _transparent(chunk: bytes, depth: int, colour: int) -> bytes:
    """The colour that is transparent as Pillow takes it: it compares a sample of 2 or 4 bits once it has been scaled
    to 8, and of 16-bit colours the upper byte, which tells only where both bytes are alike."""
    if colour == GREY and depth in (2, 4) and len(chunk) == 2:
        return struct.pack(">H", int.from_bytes(chunk, "big") * 255 // (2**depth - 1) & 0xFFFF)
    if colour == RGB and depth == 16 and chunk[::2] != chunk[1::2]:
        return b""
    return chunk


def _raw_bytes(width: int, height: int, bits: int, is_interlaced: bool) -> int:
    """Of all rows once inflated: each begins with a byte that names its filter."""
    passes = PASSES if is_interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, right, down in passes:
        columns, rows = -((left - width) // right), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total
