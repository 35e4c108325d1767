"""Complete pictures are classified, cut ones refused, by whether the rows are there; damage never crashes."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import InvalidImage, LowfirstError, UnsupportedImage
from service.images.decode import decode, photograph
from service.images.transforms import Preprocessing
from tests.images.encoding import PREPROCESSING, SMALL, boxed, chunk, decoded, encoded, patched, picture, riff

JPEGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "444": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "progressive with restarts": {"progressive": True, "restart_marker_rows": 2},
}


def jpeg(kind: str, mode: str = "RGB") -> bytes:
    return encoded(picture().convert(mode), "JPEG", quality=90, **JPEGS[kind])


def is_cut_short(data: bytes) -> bool:
    try:
        decode(data, PREPROCESSING)
    except InvalidImage as error:
        return "cut short" in error.message and error.status == 400
    return False


class TestJpeg:
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("kind", JPEGS)
    def test_with_all_rows_is_read_without_its_end_marker(self, kind: str, mode: str) -> None:
        whole = jpeg(kind, mode)
        assert whole.endswith(b"\xff\xd9")
        for data in (whole[:-2], whole[:-1], whole[:-2] + b"\0" * 9):
            assert np.array_equal(decoded(data), decoded(whole))

    @pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
    @pytest.mark.parametrize("share", [0.4, 0.6, 0.8, 0.95])
    @pytest.mark.parametrize("kind", JPEGS)
    def test_with_rows_missing_is_refused(self, kind: str, share: float, end: bytes) -> None:
        data = jpeg(kind)
        assert is_cut_short(data[: int(len(data) * share)] + end)

    @pytest.mark.parametrize("left", [1, 2, 3, 7, 8, 9, 14])
    def test_cut_at_a_restart_is_refused(self, left: int) -> None:
        data = jpeg("restarts")
        places = [at for at in range(len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
        assert len(places) == 14
        assert is_cut_short(data[: places[-left]] + b"\xff\xd9")

    @pytest.mark.parametrize("kind", JPEGS)
    def test_whose_header_claims_more_rows_than_there_are_is_refused(self, kind: str) -> None:
        data = jpeg(kind)
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        assert is_cut_short(patched(data, frame + 5, struct.pack(">H", 480)))
        assert is_cut_short(patched(data, frame + 5, struct.pack(">H", 257)))

    @pytest.mark.parametrize(
        ("kind", "colour"),
        [(kind, colour) for kind in JPEGS for colour in ("black", (200, 30, 90))] + [("plain", (128, 128, 128))],
    )
    def test_of_one_colour_is_read_whole_and_refused_cut(self, kind: str, colour: Any) -> None:
        data = encoded(Image.new("RGB", (300, 240), colour), "JPEG", **JPEGS[kind])
        assert not is_cut_short(data)
        assert not is_cut_short(data[:-2])
        scan = data.index(b"\xff\xda") + 14
        assert is_cut_short(data[: scan + 20] + b"\xff\xd9")

    def test_far_larger_than_needed_is_refused_cut(self) -> None:
        data = encoded(picture(2400, 1800), "JPEG")
        assert not is_cut_short(data[:-2])
        assert is_cut_short(data[: int(len(data) * 0.9)] + b"\xff\xd9")
        with pytest.raises(InvalidImage, match="cut short"):
            photograph(data[: int(len(data) * 0.9)] + b"\xff\xd9")

    @pytest.mark.parametrize(
        "sampling", [(0x31, 0x31, 0x31), (0x11, 0x21, 0x11), (0x22, 0x21, 0x11), (0x13, 0x11, 0x11)]
    )
    def test_of_an_unusual_sampling_is_read_whole_and_refused_cut(self, sampling: tuple[int, int, int]) -> None:
        """Grey: a block is the code of no difference and that of no more, of luma or chroma."""
        header = encoded(Image.new("RGB", (288, 288), (128, 128, 128)), "JPEG", subsampling=0)
        header = header[: header.index(b"\xff\xda") + 14]
        frame = header.index(b"\xff\xc0")
        for number, each in enumerate(sampling):
            header = patched(header, frame + 11 + 3 * number, bytes((each,)))
        blocks = [(each >> 4) * (each & 15) for each in sampling]
        width, height = 8 * max(each >> 4 for each in sampling), 8 * max(each & 15 for each in sampling)
        units = -(-288 // width) * -(-288 // height)
        bits = ("001010" * blocks[0] + "0000" * (blocks[1] + blocks[2])) * units
        bits += "1" * (-len(bits) % 8)
        data = int(bits, 2).to_bytes(len(bits) // 8, "big")
        assert np.abs(decoded(header + data) - 128).max() == 0
        assert is_cut_short(header + data[: len(data) // 2] + b"\xff\xd9")

    def test_with_damage_that_leaves_all_rows_is_what_decodes(self) -> None:
        data = encoded(picture(501, 377), "JPEG")
        read = 0
        for at in range(len(data) // 2, len(data) - 100, 400):
            damaged = patched(data, at, bytes((data[at] ^ 4,)))
            if not is_cut_short(damaged):
                with Image.open(io.BytesIO(damaged)) as image:
                    assert np.abs(decoded(damaged) - boxed(image)).max() <= 1
                read += 1
        assert read > 5

    def test_with_junk_before_its_end_is_read(self) -> None:
        data = jpeg("plain")
        assert np.array_equal(decoded(data[:-2] + b"some bytes" + data[-2:]), decoded(data))

    @pytest.mark.parametrize(
        ("marker", "bits", "what"),
        [
            (0xC1, 12, "12 bits"),
            (0xC3, 16, "lossless"),
            (0xC7, 8, "lossless"),
            (0xC5, 8, "hierarchical"),
            (0xC9, 8, "arithmetic-coded"),
            (0xCA, 8, "arithmetic-coded"),
            (0xCB, 8, "arithmetic-coded"),
            (0xF7, 8, "JPEG-LS"),
        ],
    )
    def test_of_a_process_that_is_not_read_is_unsupported_not_corrupt(self, marker: int, bits: int, what: str) -> None:
        data = jpeg("plain")
        frame = data.index(b"\xff\xc0")
        data = patched(patched(data, frame + 1, bytes((marker,))), frame + 4, bytes((bits,)))
        with pytest.raises(UnsupportedImage, match=what) as raised:
            decode(data, PREPROCESSING)
        assert raised.value.status == 415
        assert "8 bits" in raised.value.bound

    def test_with_marks_of_damage_writes_nothing_past_the_log(self, capfd: pytest.CaptureFixture[str]) -> None:
        data = jpeg("plain")
        for at in range(700, len(data) - 2, 150):
            for broken in (patched(data, at, bytes(20)), data[:at] + b"\xff\xd9", patched(data, at, b"\xff\xd3")):
                try:
                    decode(broken, PREPROCESSING)
                except InvalidImage:
                    continue
        assert capfd.readouterr() == ("", "")


class TestPng:
    @pytest.mark.parametrize("height", [241, 480])
    def test_with_rows_missing_is_refused(self, height: int) -> None:
        assert is_cut_short(patched_height(encoded(picture(), "PNG"), height))

    @pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
    def test_of_black_rows_is_read_whole_and_refused_cut(self, mode: str) -> None:
        data = encoded(Image.new(mode, (64, 64)), "PNG")
        assert not is_cut_short(data)
        assert is_cut_short(patched_height(data, 65))

    def test_interlaced_with_rows_missing_is_refused(self) -> None:
        """Adam7 of 3x3 pixels: the first, fourth, fifth, sixth and seventh pass have some."""
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 3, 8, 0, 0, 0, 1))

        def interlaced(rows: bytes) -> bytes:
            pixels = chunk(b"IDAT", zlib.compress(rows))
            return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")

        raw = b"\0\x09" * 2 + b"\0\x09\x09" + b"\0\x09" * 2 + b"\0\x09\x09\x09"
        assert np.abs(decoded(interlaced(raw)) - 9).max() == 0
        assert is_cut_short(interlaced(raw[:-4]))

    @pytest.mark.parametrize("lost", [12, 16, 20])
    def test_with_all_rows_is_read_without_its_end(self, lost: int) -> None:
        data = encoded(picture(), "PNG")
        assert np.array_equal(decoded(data[:-lost]), decoded(data))

    @pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
    def test_whose_pixels_checksum_does_not_hold_is_refused(self, kind: bytes) -> None:
        data = SMALL["palette PNG"]
        at = data.index(kind) + 4
        with pytest.raises(InvalidImage, match="checksum"):
            decode(patched(data, at, bytes((data[at] ^ 1,))), PREPROCESSING)

    def test_whose_texts_checksum_does_not_hold_is_read(self) -> None:
        data = SMALL["PNG"]
        text = patched(chunk(b"tEXt", b"a\0b"), 8, b"c")
        assert np.array_equal(decoded(data[:33] + text + data[33:]), decoded(data))


def patched_height(data: bytes, height: int) -> bytes:
    """A PNG whose header claims another height, with its checksum."""
    return data[:8] + chunk(b"IHDR", patched(data[16:29], 4, struct.pack(">I", height))) + data[33:]


class TestOthers:
    def test_gif_with_rows_missing_is_refused(self) -> None:
        data = encoded(picture(64, 48).convert("P"), "GIF")
        with pytest.raises(InvalidImage):
            decode(data[: len(data) // 2] + b"\0;", PREPROCESSING)

    @pytest.mark.parametrize("lossless", [False, True])
    def test_webp_with_rows_missing_is_refused(self, lossless: bool) -> None:
        data = encoded(picture(), "WEBP", lossless=lossless)
        pixels = data[20 : 20 + len(data) // 4 * 2]
        with pytest.raises(InvalidImage):
            decode(riff(b"RIFF", b"WEBP" + riff(data[12:16], pixels)), PREPROCESSING)

    @pytest.mark.parametrize(("size", "bits"), [(41, 24), (200, 24), (40, 7)])
    def test_bmp_of_an_unknown_header_is_unsupported(self, size: int, bits: int) -> None:
        data = patched(patched(SMALL["BMP"], 14, struct.pack("<I", size)), 28, struct.pack("<H", bits))
        with pytest.raises(UnsupportedImage):
            decode(data, PREPROCESSING)


class TestAnyKind:
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("kind", SMALL)
    def test_that_is_cut_is_an_error(self, kind: str, share: float) -> None:
        data = SMALL[kind]
        with pytest.raises(InvalidImage) as raised:
            decode(data[: int(len(data) * share)], PREPROCESSING)
        assert raised.value.status == 400
        assert raised.value.field == "image"

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0",
            b"hello, world" * 9,
            b"RIFF\0\0\0\0AVI LIST",
            b"%PDF-1.7",
            SMALL["PNG"][1:],
        ],
    )
    def test_whose_first_bytes_are_of_no_format_is_unknown(self, data: bytes) -> None:
        with pytest.raises(UnsupportedImage, match="an unknown format") as raised:
            decode(data, PREPROCESSING)
        assert raised.value.status == 415
        assert "JPEG" in raised.value.bound

    @pytest.mark.parametrize("kind", SMALL)
    @given(
        edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4), st.integers(0, 6)), max_size=6),
        share=st.floats(0, 1) | st.just(1.0),
    )
    @settings(max_examples=300, deadline=None)
    def test_that_is_changed_gives_an_image_or_a_short_error_soon(
        self, kind: str, edits: list[tuple[float, bytes, int]], share: float
    ) -> None:
        data = SMALL[kind]
        for place, inserted, removed in edits:
            at = int(place**3 * len(data))  # more often in the header
            data = data[:at] + inserted + data[at + removed :]
        message = ""
        began = time.monotonic()
        try:
            assert decode(data[: int(len(data) * share)], Preprocessing(resize=36, crop=32)).shape == (3, 32, 32)
        except LowfirstError as error:
            message = error.message
        assert message.isprintable()
        assert len(message) < 200
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize("kind", SMALL)
    def test_cut_at_any_byte_gives_an_image_or_an_error(self, kind: str) -> None:
        data = SMALL[kind]
        for end in range(0, len(data), 3):
            try:
                decode(data[:end], Preprocessing(resize=36, crop=32))
            except InvalidImage:
                continue
