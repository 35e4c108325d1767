"""JPEG: a walk from marker to marker, and whether the rows are there."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from service.images import cost
from service.images.formats.exif import orientation
from service.images.formats.picture import Picture, check_parts, check_size, corrupt, cut_short, unsupported

SIGNATURE = b"\xff\xd8\xff"

# libjpeg-turbo's own tools and DALI stop at as many. Each scan of a progressive JPEG may visit every block again.
MAX_SCANS = 500

SOI, EOI, SOS, TEM, APP0, APP1, APP14, COM = 0xD8, 0xD9, 0xDA, 0x01, 0xE0, 0xE1, 0xEE, 0xFE
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
UNREAD = {
    **dict.fromkeys((0xC3, 0xC7), "lossless"),
    **dict.fromkeys((0xC5, 0xC6), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF), "arithmetic-coded"),
    0xF7: "JPEG-LS",
}
BOUND = "JPEG with Huffman codes and 8 bits per sample"

# A marker, stuffed bytes and restarts of the entropy-coded data left aside. It mostly stands where the last segment
# ends; beyond so many bytes NumPy looks for it, in blocks: 16 MB of stuffed bytes take it 5 ms, and ``re`` 80.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
NEAR, BLOCK = 64, 65_536

ALL_COEFFICIENTS = (1 << 64) - 1

# libjpeg keeps 16-bit coefficients until the last of several scans.
COEFFICIENT_BYTES = 2

# What stands behind a picture's data in the second of its two endings; no byte of it is 0xFF.
FILLER = bytes(random.Random(0).choices(range(255), k=256))


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg(Picture):
    """Attributes: components: 1 grey, 3 colour, 4 CMYK."""

    components: int

    def endings(self) -> tuple[bytes, bytes]:
        """The picture with an end marker behind its data, and with more data and every restart marker before that.

        libjpeg makes up what is missing (grey, or a coarser picture), by way of a warning at most. Something is
        missing if and only if what is decoded depends on what follows, and so the pixels of the two tell: no counting
        of blocks, and the same for every kind of JPEG. Metadata is left out.
        """
        data = _without_metadata(self.encoded)
        scan = max(end for marker, _, end in _segments(data) if marker == SOS)
        end = _next_marker(data, scan)
        data = data if end is None else data[:end]
        places = [data.rfind(bytes((0xFF, 0xD0 + number)), scan) for number in range(8)]
        first = (places.index(max(places)) + 1) % 8 if max(places) >= 0 else 0
        expected = ((first + number) % 8 for number in range(8))
        more = b"".join(bytes((0xFF, 0xD0 + number)) + FILLER for number in expected)
        return data + b"\xff\xd9", data + FILLER + more + b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class _Frame:
    progressive: bool
    width: int
    height: int
    samplings: bytes  # a byte of each component


def read(data: bytes) -> Jpeg:
    """Walk the markers. In a sequential JPEG whose first scan has every component the walk ends there: libjpeg reads
    no second one.

    Raises:
        UnsupportedImage: a process or depth that is not read.
        ImageTooLarge: too many pixels, scans or segments.
        InvalidImage: no frame and scan.
    """
    frame, exif, scans, is_kept, has_end = None, b"", 0, True, False
    first: dict[int, int] = {}  # by component: a bit of each coefficient that came, with all of its own bits or not
    whole: dict[int, int] = {}
    for marker, start, end in _segments(data):
        if marker == SOS and frame is not None:
            scans += 1
            check_parts(scans, "scans", MAX_SCANS)
            is_kept = frame.progressive or data[start : start + 1] != bytes((len(frame.samplings),))
            if not is_kept:
                break
            _note_scan(data[start:end], first, whole)
        elif marker == EOI:
            has_end = True
        elif marker == APP1 and not exif and data.startswith(b"Exif\0\0", start):
            exif = data[start:end]
        elif marker in UNREAD:
            raise unsupported(f"{UNREAD[marker]} JPEG", BOUND)
        elif BASELINE <= marker <= PROGRESSIVE and frame is None:
            frame = _frame(marker, data[start:end])
    if frame is None or not scans:
        raise cut_short(data)
    if is_kept:  # an encoder may leave out detail; where the end marker is missing, too, it came no further
        came, needed = (first, 1) if has_end else (whole, ALL_COEFFICIENTS)
        if len(came) < len(frame.samplings) or any(each & needed != needed for each in came.values()):
            raise cut_short(data)
    samples = [(each >> 4) * (each & 15) for each in frame.samplings]
    per_pixel = sum(samples) / max(*samples, 1)
    return Jpeg(
        kind="progressive JPEG" if frame.progressive else "JPEG",
        width=frame.width,
        height=frame.height,
        encoded=data,
        orientation=orientation(exif) if exif else 1,
        decoder_bytes=COEFFICIENT_BYTES * per_pixel if is_kept else 0.0,
        seconds=cost.jpeg(len(data), per_pixel * frame.width * frame.height, scans, is_kept),
        components=len(samples),
    )


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Each segment's marker, where its contents start and where they end; the end marker is the last."""
    at, count = 2, 0
    while (place := _next_marker(data, at)) is not None:
        marker, at = data[place + 1], place + 2
        if marker == EOI:
            yield marker, at, at
            return
        count += 1
        check_parts(count, "segments")
        if marker in (SOI, TEM):
            continue
        start, at = at + 2, at + int.from_bytes(data[at : at + 2], "big")
        if at < start:
            raise corrupt("a segment of a JPEG has no length")
        if at > len(data):
            return
        yield marker, start, at


def _next_marker(data: bytes, at: int) -> int | None:
    """Where the first marker at or behind ``at`` stands."""
    near = MARKER.search(data, at, at + NEAR)
    if near is not None:
        return near.start()
    for start in range(at, len(data) - 1, BLOCK):
        block = np.frombuffer(data, np.uint8, min(BLOCK + 1, len(data) - start), start)
        following = block[1:]
        found = (block[:-1] == 0xFF) & (following + 1 > 1) & (following - 0xD0 > 7)  # modulo 256
        first = int(found.argmax())
        if found[first]:
            return start + first
    return None


def _frame(marker: int, header: bytes) -> _Frame:
    if len(header) < 6 or len(header) < 6 + 3 * header[5]:
        raise corrupt("the frame header of a JPEG is too short")
    bits, components = header[0], header[5]
    height, width = int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big")
    if bits != 8:
        raise unsupported(f"JPEG of {bits} bits per sample", BOUND)
    if components not in (1, 3, 4):
        raise unsupported(f"JPEG of {components} components", "JPEG of 1, 3 or 4 components")
    check_size(width, height)
    return _Frame(marker == PROGRESSIVE, width, height, header[7 : 7 + 3 * components : 3])


def _note_scan(header: bytes, first: dict[int, int], whole: dict[int, int]) -> None:
    """Raises: InvalidImage: no scan header."""
    if not header or len(header) != 4 + 2 * header[0]:
        raise corrupt("the scan header of a JPEG is too short")
    start, end, bits = header[-3:]
    came = (1 << end + 1) - (1 << start) if start <= end < 64 else 0
    for component in header[1:-3:2]:
        first[component] = first.get(component, 0) | came
        if bits & 15 == 0:  # the last bit of each
            whole[component] = whole.get(component, 0) | came


def _without_metadata(data: bytes) -> bytes:
    """For Pillow, which reads every segment in Python. What is kept tells JFIF and Adobe colours apart."""
    parts, at = [], 0
    for marker, start, end in _segments(data):
        if marker == COM or (APP0 < marker <= 0xEF and marker != APP14):
            parts.append(data[at : start - 4])
            at = end
    return b"".join((*parts, data[at:]))
