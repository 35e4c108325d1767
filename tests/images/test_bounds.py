"""What an image may cost: pixels, parts, memory; metadata is skipped, whatever it would inflate to."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.errors import ImageTooLarge, InvalidImage
from service.images.decode import decode, is_dear, photograph
from service.images.formats.reading import read
from tests.images.bombs import BOMBS, PARTS, with_scans
from tests.images.encoding import PREPROCESSING, SMALL, chunk, decoded, encoded, oriented, picture, png


class TestPixels:
    @pytest.mark.parametrize("kind", BOMBS)
    def test_are_bounded_before_any_is_decoded(self, kind: str) -> None:
        data, pixels = BOMBS[kind]
        began = time.perf_counter()
        with pytest.raises(ImageTooLarge) as raised:
            decode(data, PREPROCESSING)
        assert time.perf_counter() - began < 1
        assert (raised.value.field, raised.value.value) == ("image", pixels)
        assert str(raised.value.bound) in raised.value.message
        assert raised.value.bound < pixels

    @pytest.mark.parametrize("kind", ["strip JPEG", "progressive JPEG"])
    def test_beyond_what_their_kind_may_have_name_the_kind(self, kind: str) -> None:
        with pytest.raises(ImageTooLarge, match="JPEG; the limit of its kind is"):
            decode(BOMBS[kind][0], PREPROCESSING)


class TestParts:
    @pytest.mark.parametrize("kind", PARTS)
    def test_are_bounded_by_a_walk(self, kind: str) -> None:
        make, what = PARTS[kind]
        began = time.perf_counter()
        with pytest.raises(ImageTooLarge, match=f"more than 10000 {what}") as raised:
            decode(make(1_500_000), PREPROCESSING)
        assert time.perf_counter() - began < 2
        assert raised.value.bound == 10_000

    @pytest.mark.parametrize("kind", PARTS)
    def test_below_the_bound_change_nothing(self, kind: str) -> None:
        make, _ = PARTS[kind]
        assert np.array_equal(decoded(make(4900)), decoded(make(0)))

    def test_of_a_progressive_jpeg_are_at_most_500_scans(self) -> None:
        assert np.array_equal(decoded(with_scans(500)), decoded(SMALL["progressive JPEG"]))
        for count in (501, 100_000):
            with pytest.raises(ImageTooLarge, match="more than 500 scans"):
                decode(with_scans(count), PREPROCESSING)

    @pytest.mark.parametrize("count", [1, 600])
    def test_after_the_first_scan_of_a_plain_jpeg_are_refused(self, count: int) -> None:
        data = SMALL["JPEG"]
        scan = data[data.index(b"\xff\xda") : -2]
        with pytest.raises(InvalidImage):
            decode(data[:-2] + scan * count + b"\xff\xd9", PREPROCESSING)

    @pytest.mark.parametrize("filling", [b"\xff\x00", b"\xff", b"\0", b"\xff\xd3"])
    def test_of_16_mb_of_any_filling_are_walked_soon(self, filling: bytes) -> None:
        data = SMALL["progressive JPEG"]
        began = time.perf_counter()
        read(data[:-2] + filling * (16_000_000 // len(filling)) + data[-2:])
        assert time.perf_counter() - began < 1


class TestMetadata:
    @pytest.mark.parametrize(
        "metadata",
        [
            chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9_000_000))),
            chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"a" * 9_000_000)) * 40,
            chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(9_000_000))) * 1000,
            chunk(b"tEXt", b"a\0" + b"b" * 9_000_000),
            chunk(b"iCCP", b"broken"),
            chunk(b"gAMA", b""),
            chunk(b"acTL", struct.pack(">II", 5, 0)),
        ],
    )
    def test_of_a_png_is_never_looked_at(self, metadata: bytes) -> None:
        data = SMALL["palette PNG"]
        assert np.array_equal(decoded(data[:33] + metadata + data[33:]), decoded(data))

    def test_of_a_jpeg_is_never_looked_at(self) -> None:
        data = SMALL["JPEG"]
        comments = (b"\xff\xfe\xff\xff" + bytes(65_533)) * 200 + (b"\xff\xe1\xea\x60Exif\0\0" + bytes(59_992)) * 99
        assert np.array_equal(decoded(data[:2] + b"\xff\xe2\0\x06ICCx" + data[2:]), decoded(data))
        assert decode(data[:2] + comments + data[2:], PREPROCESSING).shape == (3, 192, 192)

    def test_of_many_directory_entries_is_one_pass(self) -> None:
        entries = struct.pack(">HHII", 5, 7, 60_000, 8) * 5000
        exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 5000) + entries
        segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        upright = encoded(picture(40, 30), "JPEG")
        assert np.array_equal(decoded(upright[:2] + segment + upright[2:]), decoded(upright))

    @pytest.mark.parametrize(("kind", "form"), [(1, "B3x"), (3, "H2x"), (4, "I")])
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_orientation_may_be_of_any_whole_type(self, order: str, kind: int, form: str) -> None:
        head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 1)
        exif = b"Exif\0\0" + head + struct.pack(order + "HHI" + form, 274, kind, 1, 6)
        segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        upright = encoded(picture(40, 30), "JPEG")
        turned = encoded(picture(40, 30), "JPEG", exif=oriented(6))
        assert np.array_equal(decoded(upright[:2] + segment + upright[2:]), decoded(turned))


class TestRunLength:
    def test_of_a_bmp_that_makes_no_progress_is_not_followed(self) -> None:
        """Ends of rows where a row ends already, 16 MB of them: Pillow would read each."""
        palette = bytes(range(256)) * 4
        head = struct.pack("<IiiHHIIiiII", 40, 40, 30, 1, 8, 1, 0, 0, 0, 256, 0)
        body = b"BM" + struct.pack("<III", 0, 0, 54 + 1024) + head + palette
        assert len(read(body + bytes(16_000_000)).encoded) < 5000
        rows = (b"\x28\x07" + b"\0\0") * 30 + b"\0\1"
        assert decode(body + rows, PREPROCESSING).shape == (3, 192, 192)


# VmHWM and not getrusage, whose peak a child inherits from the process that starts it.
MEASURE = """
import re, sys
from pathlib import Path
from service.errors import InvalidImage
from service.images.decode import decode
from service.images.helper import HELPER
from service.images.transforms import Preprocessing

def megabytes(process, what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path(f"/proc/{process}/status").read_text())[1]) / 1000

errors, most = [], 0.0
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = megabytes("self", "VmRSS")
    for _ in range(5 if path.name.startswith("broken") else 1):
        try:
            decode(data, Preprocessing(resize=225, crop=192))
        except InvalidImage as error:
            errors.append(error)
    extra = megabytes("self", "VmHWM") - before
    most = max(most, extra)
    print(path.name, extra)
print(len(errors), most, megabytes(HELPER.process_id, "VmHWM"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestMemory:
    def test_of_the_largest_images_of_metadata_and_of_kept_errors_is_below_100_mb(self, tmp_path: Path) -> None:
        square, flat = Image.new("RGB", (2800, 2800)), bytes(2800 * 2800 * 4)
        text = zlib.compress(("\U0001f600" + "a" * 1_000_000).encode())
        texts = b"".join(chunk(b"iTXt", b"%d\0\1\0\0\0" % number + text) for number in range(60))
        exif = (b"\xff\xe1\xea\x60Exif\0\0" + bytes(59_992)) * 99
        rgba = png(2800, 2800, 8, 6, flat)
        files = {
            "48 megapixels.jpg": encoded(Image.new("RGB", (8000, 6000)), "JPEG"),
            "progressive.jpg": encoded(Image.new("RGB", (4300, 4300)), "JPEG", progressive=True),
            "progressive strip.jpg": encoded(Image.new("RGB", (10_000, 440)), "JPEG", progressive=True, subsampling=0),
            "fine progressive.jpg": encoded(Image.new("RGB", (4000, 3000)), "JPEG", progressive=True, subsampling=0),
            "cmyk strip.jpg": encoded(Image.new("CMYK", (32_000, 449)), "JPEG"),
            "rgba.png": rgba,
            "grey alpha.png": png(2800, 2800, 8, 4, flat[::2]),
            "16 bits.png": png(2800, 2800, 16, 0, flat[::2]),
            "colour key.png": png(2800, 2800, 8, 2, flat[: 2800 * 2800 * 3], chunk(b"tRNS", bytes(6))),
            "palette.gif": encoded(square.resize((2100, 2100)).convert("P"), "GIF", transparency=0),
            "rgba.webp": encoded(Image.new("RGBA", (1950, 1950), (9, 9, 9, 9)), "WEBP", lossless=True, method=0),
            "text.png": SMALL["PNG"][:33] + texts + SMALL["PNG"][33:],
            "exif.jpg": b"\xff\xd8" + exif + SMALL["JPEG"][2:],
            "lossy.webp": encoded(Image.new("RGB", (3300, 3300)), "WEBP", method=0),
            "lossless.webp": encoded(Image.new("RGB", (2900, 2900)), "WEBP", lossless=True, method=0),
            "larger lossless.webp": encoded(Image.new("RGB", (4000, 3000)), "WEBP", lossless=True, method=0),
            "screen.png": png(5120, 2880, 8, 6, bytes(5120 * 2880 * 4)),
            "broken.png": rgba[: len(rgba) // 2],
        }
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        run = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
        errors, megabytes, helper = run.stdout.split()[-3:]
        assert errors == "5", f"only the broken one, five times:\n{run.stdout}"
        assert float(megabytes) < 100, run.stdout
        assert float(helper) < 400, run.stdout

    def test_of_a_photograph_to_augment_is_bounded_by_its_scale(self) -> None:
        assert photograph(encoded(Image.new("RGB", (8000, 6000)), "JPEG")).size == (4000, 3000)

    @pytest.mark.parametrize(
        ("width", "height", "options"),
        [(500, 375, {}), (4000, 3000, {}), (8000, 6000, {}), (1920, 1080, {"progressive": True})],
    )
    def test_of_an_ordinary_photograph_is_no_matter_for_the_helper(
        self, width: int, height: int, options: dict[str, bool]
    ) -> None:
        assert not is_dear(encoded(Image.new("RGB", (width, height)), "JPEG", **options), PREPROCESSING)
