"""Real encoded bytes, made in memory; PIL's own resize is the reference, which PyTorch's equals but for rounding."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

import service.images.decode as decoding
from service.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from service.images.decode import decode, photograph
from service.images.transforms import Preprocessing

Pixels = NDArray[np.int64]  # (height, width, 3)

PREPROCESSING = Preprocessing(resize=225, crop=192)


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def picture(width: int = 300, height: int = 240, seed: int = 0) -> Image.Image:
    """Smooth colours, different everywhere, so that a shift or a turn is seen."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def pixels_of(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).astype(np.int64)


def decoded(data: bytes, preprocessing: Preprocessing = PREPROCESSING) -> Pixels:
    return decode(data, preprocessing).permute(1, 2, 0).numpy().astype(np.int64)


def boxed(image: Image.Image) -> Pixels:
    """The reference: PIL's own antialiased resize of the source square, and its centre."""
    box, side = PREPROCESSING.source_square(*image.size)
    resized = image.convert("RGB").crop(box).resize((side, side), Image.Resampling.BILINEAR)
    start = (side - 192) // 2
    return pixels_of(resized.crop((start, start, start + 192, start + 192)))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of any bit depth; ``rows`` are raw samples, ``chunks`` stand before the pixels."""
    stride = max(1, len(rows) // height)
    filtered = b"".join(b"\0" + rows[at : at + stride] for at in range(0, len(rows), stride))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(filtered, 1))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + chunk(b"IEND", b"")


def riff(kind: bytes, body: bytes) -> bytes:
    """A chunk of a WebP file, or all of it; ``body`` is of even length."""
    return kind + struct.pack("<I", len(body)) + body


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


class TestPixels:
    @pytest.mark.parametrize(
        "data",
        [
            encoded(picture(), "JPEG"),
            encoded(picture(), "WEBP"),
            encoded(picture(), "PNG", exif=oriented(6)),
            encoded(picture(192, 192), "BMP"),
            encoded(picture(1, 1), "PNG"),
        ],
    )
    def test_are_bytes_of_the_crops_size_with_channels_last_in_memory(self, data: bytes) -> None:
        image = decode(data, PREPROCESSING)
        assert image.shape == (3, 192, 192)
        assert image.dtype == torch.uint8
        assert image.permute(1, 2, 0).is_contiguous()

    @pytest.mark.parametrize("size", [(224, 224), (400, 300), (375, 500), (301, 449)])
    def test_are_those_of_one_resize_of_the_source_square(self, size: tuple[int, int]) -> None:
        data = encoded(picture(*size), "JPEG")
        assert np.abs(decoded(data) - boxed(Image.open(io.BytesIO(data)))).max() <= 1

    @pytest.mark.parametrize(
        ("size", "resize", "bound"),
        [((240, 960), 224, 0.3), ((672, 336), 224, 0.01), ((500, 375), 225, 2.5), ((375, 500), 225, 2.5)],
    )  # the square is rounded to whole pixels, at 225 the reference's centre by half a pixel
    def test_are_those_of_resizing_the_shorter_side_and_cropping_the_centre(
        self, size: tuple[int, int], resize: int, bound: float
    ) -> None:
        image, scale = picture(*size), resize / min(size)
        resized = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BILINEAR)
        left, top = (resized.width - 192) // 2, (resized.height - 192) // 2
        reference = pixels_of(resized.crop((left, top, left + 192, top + 192)))
        actual = decoded(encoded(image, "PNG"), Preprocessing(resize=resize, crop=192))
        assert np.abs(actual - reference).mean() < bound

    @pytest.mark.parametrize("size", [(451, 450), (900, 1300), (2003, 1811), (3000, 2400)])
    def test_of_a_large_jpeg_decoded_at_a_scale_are_those_of_all_of_it(self, size: tuple[int, int]) -> None:
        data = encoded(picture(*size), "JPEG", quality=90)
        difference = np.abs(decoded(data) - boxed(Image.open(io.BytesIO(data))))
        assert difference.mean() < 2.5  # each square is rounded to whole pixels, of pictures of different sizes
        assert difference.max() < 16

    @pytest.mark.parametrize("image_format", ["PNG", "BMP"])
    def test_of_a_large_picture_are_those_of_one_resize(self, image_format: str) -> None:
        data = encoded(picture(2003, 1811), image_format)  # averaged over 4x4 pixels first
        difference = np.abs(decoded(data) - boxed(picture(2003, 1811)))
        assert difference.mean() < 0.7
        assert difference.max() < 8

    def test_of_fine_detail_do_not_alias(self) -> None:
        stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (1000, 500)))
        assert np.abs(decoded(encoded(stripes, "PNG")) - 127).max() < 16

    def test_are_the_same_in_every_thread(self) -> None:
        files = [encoded(picture(seed=seed), kind) for seed in range(2) for kind in ("JPEG", "PNG", "WEBP", "BMP")]
        alone = [decode(data, PREPROCESSING) for data in files]
        with ThreadPoolExecutor(8) as threads:
            together = list(threads.map(lambda data: decode(data, PREPROCESSING), files * 4))
        assert all(torch.equal(one, other) for one, other in zip(alone * 4, together, strict=True))


class TestFormats:
    @pytest.mark.parametrize(
        ("image_format", "options"),
        [
            ("JPEG", {"quality": 95}),
            ("JPEG", {"quality": 95, "progressive": True}),
            ("MPO", {"quality": 95, "save_all": True, "append_images": [Image.new("RGB", (300, 240))]}),
            ("PNG", {}),
            ("WEBP", {"quality": 95}),
            ("WEBP", {"lossless": True}),
            ("BMP", {}),
        ],
    )
    def test_that_are_read(self, image_format: str, options: dict[str, Any]) -> None:
        data = encoded(picture(), image_format, **options)
        assert np.abs(decoded(data) - boxed(picture())).mean() < 2
        assert photograph(data).size == (300, 240)

    @pytest.mark.parametrize("mode", ["1", "L", "P"])
    @pytest.mark.parametrize("image_format", ["PNG", "GIF", "BMP"])
    def test_of_few_colours(self, image_format: str, mode: str) -> None:
        image = picture().convert(mode)
        assert np.abs(decoded(encoded(image, image_format)) - boxed(image)).max() <= 1

    @pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
    def test_of_many_frames_give_the_first(self, image_format: str) -> None:
        first, others = Image.new("RGB", (64, 48), "lime"), [Image.new("RGB", (64, 48), "red")] * 2
        data = encoded(first, image_format, save_all=True, append_images=others)
        assert np.abs(decoded(data) - (0, 255, 0)).max() < 8

    def test_of_jpeg_are_the_same_with_and_without_torchvision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        image = picture(501, 377)
        options: list[dict[str, Any]] = [{}, {"progressive": True}, {"exif": oriented(5)}, {"subsampling": 0}]
        files = [encoded(image, "JPEG", **each) for each in options] + [encoded(image.convert("L"), "JPEG")]
        whole, middle = files[0], len(files[0]) // 2
        files += [whole[:middle] + bytes(20) + whole[middle + 20 :], whole[:-2] + b"some bytes" + whole[-2:]]
        fast = [decoded(data) for data in files]
        monkeypatch.setattr(decoding, "DECODE_JPEG", None)
        assert all(np.array_equal(pixels, decoded(data)) for pixels, data in zip(fast, files, strict=True))

    def test_of_webp_are_the_same_with_and_without_torchvision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        exif = oriented(5)
        files = [
            encoded(picture(501, 377), "WEBP", **options)
            for options in ({}, {"lossless": True}, {"exif": exif}, {"lossless": True, "exif": exif})
        ]
        fast = [decoded(data) for data in files]
        monkeypatch.setattr(decoding, "DECODE_WEBP", None)
        assert all(np.array_equal(pixels, decoded(data)) for pixels, data in zip(fast, files, strict=True))

    def test_of_a_webp_animation_of_one_frame(self) -> None:
        still = encoded(picture(64, 48), "WEBP", quality=95)
        side = struct.pack("<I", 63)[:3] + struct.pack("<I", 47)[:3]
        frame = riff(b"ANMF", bytes(6) + side + bytes(4) + still[12:])
        animation = riff(b"VP8X", b"\x02\0\0\0" + side) + riff(b"ANIM", bytes(6)) + frame
        data = riff(b"RIFF", b"WEBP" + animation)
        assert np.array_equal(decoded(data), decoded(still))

    def test_of_cmyk(self) -> None:
        data = encoded(picture().convert("CMYK"), "JPEG")
        assert b"Adobe" in data  # whose values are inverted
        assert np.abs(decoded(data) - boxed(picture())).mean() < 2

    @pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (2, 3)])
    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
    def test_of_extreme_shapes(self, image_format: str, size: tuple[int, int]) -> None:
        if image_format == "WEBP":
            size = min(size[0], 16_383), min(size[1], 16_383)
        data = encoded(Image.new("RGB", size, (200, 100, 50)), image_format)
        assert np.abs(decoded(data) - (200, 100, 50)).max() < 4
        assert photograph(data).size == size


class TestDepth:
    def test_of_16_bit_grey_is_scaled_not_clipped(self) -> None:
        grey = np.asarray(picture().convert("L"))
        samples = grey.astype(">u2") * 257
        difference = decoded(png(300, 240, 16, 0, samples.tobytes())) - boxed(Image.fromarray(grey))
        assert np.abs(difference).max() <= 1

    @pytest.mark.parametrize("transparent", [b"", chunk(b"tRNS", struct.pack(">HHH", 300, 65_000, 1))])
    def test_of_16_bit_colour_is_scaled(self, transparent: bytes) -> None:
        samples = np.asarray(picture()).astype(">u2") * 257
        difference = decoded(png(300, 240, 16, 2, samples.tobytes(), transparent)) - boxed(picture())
        assert np.abs(difference).max() <= 1


class TestTransparency:
    @pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
    def test_is_laid_over_white(self, image_format: str) -> None:
        image = picture()
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        data = encoded(image, image_format, **{"lossless": True} if image_format == "WEBP" else {})
        assert np.abs(decoded(data) - boxed(white)).max() < 4

    @pytest.mark.parametrize("image_format", ["PNG", "GIF"])
    def test_of_a_palette_is_laid_over_white(self, image_format: str) -> None:
        image = Image.new("P", (64, 64), 3)
        image.putpalette(range(12))
        assert decoded(encoded(image, image_format, transparency=3)).min() == 255

    def test_of_a_palette_may_be_partial(self) -> None:
        image = Image.new("P", (64, 64), 1)
        image.putpalette([0] * 6)
        assert np.abs(decoded(encoded(image, "PNG", transparency=bytes((255, 51)))) - 204).max() < 2

    @pytest.mark.parametrize(("mode", "colour"), [("1", 0), ("L", 9), ("RGB", (1, 2, 3))])
    def test_of_one_colour_is_laid_over_white(self, mode: str, colour: int | tuple[int, ...]) -> None:
        image = Image.new(mode, (64, 64), colour)
        assert decoded(encoded(image, "PNG", transparency=colour)).min() == 255

    def test_of_grey_is_laid_over_white(self) -> None:
        assert np.abs(decoded(encoded(Image.new("LA", (64, 64), (0, 51)), "PNG")) - 204).max() < 2


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
    def test_is_applied(self, image_format: str, orientation: int) -> None:
        options = {"lossless": True} if image_format == "WEBP" else {}
        data = encoded(picture(), image_format, exif=oriented(orientation), **options)
        image = Image.open(io.BytesIO(data))
        square = Image.fromarray(boxed(image).astype(np.uint8))
        square.getexif()[274] = orientation
        assert np.abs(decoded(data) - pixels_of(ImageOps.exif_transpose(square))).max() <= 1
        assert np.array_equal(pixels_of(photograph(data)), pixels_of(ImageOps.exif_transpose(image)))

    @pytest.mark.parametrize(
        "exif", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*" + b"\0\0\0\x08\xff\xff" + bytes(99)]
    )
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
    def test_that_cannot_be_read_is_ignored(self, image_format: str, exif: bytes) -> None:
        data = encoded(picture(), image_format, exif=b"Exif\0\0" + exif)
        assert np.array_equal(decoded(data), decoded(encoded(picture(), image_format)))

    @pytest.mark.parametrize("orientation", [0, 9, 65_535])
    def test_that_does_not_exist_is_ignored(self, orientation: int) -> None:
        data = encoded(picture(), "JPEG", exif=oriented(orientation))
        assert np.array_equal(decoded(data), decoded(encoded(picture(), "JPEG")))


class TestPhotograph:
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 99}])
    def test_is_what_pil_makes_of_a_jpeg(self, options: dict[str, Any]) -> None:
        data = encoded(picture(501, 377), "JPEG", **options)
        image = photograph(data)
        assert type(image) is Image.Image
        assert image.mode == "RGB"
        assert np.array_equal(pixels_of(image), pixels_of(Image.open(io.BytesIO(data))))

    def test_too_large_for_memory_comes_at_a_smaller_scale(self) -> None:
        assert photograph(encoded(Image.new("RGB", (8000, 6000)), "JPEG")).size == (4000, 3000)


SMALL = {
    "JPEG": encoded(picture(40, 30), "JPEG", exif=oriented(6)),
    "progressive JPEG": encoded(picture(40, 30), "JPEG", progressive=True),
    "CMYK JPEG": encoded(picture(40, 30).convert("CMYK"), "JPEG"),
    "PNG": encoded(picture(40, 30), "PNG", exif=oriented(6)),
    "palette PNG": encoded(picture(40, 30).quantize(16), "PNG", transparency=bytes(range(16))),
    "GIF": encoded(picture(40, 30), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30))]),
    "WEBP": encoded(picture(40, 30), "WEBP", exif=oriented(6)),
    "lossless WEBP": encoded(picture(40, 30).convert("RGBA"), "WEBP", lossless=True),
    "BMP": encoded(picture(40, 30), "BMP"),
}


class TestCorruption:
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("kind", SMALL)
    def test_by_a_cut_is_an_error(self, kind: str, share: float) -> None:
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
    def test_of_the_first_bytes_is_an_unknown_format(self, data: bytes) -> None:
        with pytest.raises(UnsupportedImage, match="no known format") as raised:
            decode(data, PREPROCESSING)
        assert raised.value.status == 415
        assert "JPEG" in raised.value.bound

    @given(
        kind=st.sampled_from(sorted(SMALL)),
        edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4), st.integers(0, 6)), max_size=6),
        share=st.floats(0, 1) | st.just(1.0),
    )
    @settings(max_examples=200, deadline=None)
    def test_of_any_kind_gives_an_image_or_a_short_error(
        self, kind: str, edits: list[tuple[float, bytes, int]], share: float
    ) -> None:
        data = SMALL[kind]
        for place, inserted, removed in edits:
            at = int(place**3 * len(data))  # more often in the header
            data = data[:at] + inserted + data[at + removed :]
        message = ""
        try:
            assert decode(data[: int(len(data) * share)], Preprocessing(resize=36, crop=32)).shape == (3, 32, 32)
        except InvalidImage as error:
            message = error.message
        assert message.isprintable()
        assert len(message) < 200


# Header bytes that claim more pixels than there are, and how many they claim.
JPEG_FRAME = SMALL["JPEG"].index(b"\xff\xc0")
JPEG_FRAME_PROGRESSIVE = SMALL["progressive JPEG"].index(b"\xff\xc2")
BOMBS = {
    "JPEG": (patched(SMALL["JPEG"], JPEG_FRAME + 5, struct.pack(">HH", 30_000, 30_000)), 30_000**2),
    "progressive JPEG": (
        patched(SMALL["progressive JPEG"], JPEG_FRAME_PROGRESSIVE + 5, struct.pack(">HH", 6000, 6000)),
        6000**2,
    ),
    "strip JPEG": (patched(SMALL["JPEG"], JPEG_FRAME + 5, struct.pack(">HH", 400, 60_000)), 24_000_000),
    "PNG": (png(30_000, 30_000, 8, 6, bytes(30_000)), 30_000**2),
    "GIF": (patched(SMALL["GIF"], 6, struct.pack("<HH", 30_000, 30_000)), 30_000**2),
    "BMP": (patched(SMALL["BMP"], 18, struct.pack("<II", 30_000, 30_000)), 30_000**2),
    "WEBP": (patched(SMALL["WEBP"], 24, b"\xff\x3f\x00" * 2), 16_384**2),
    "VP8 WEBP": (patched(encoded(picture(9, 9), "WEBP"), 26, struct.pack("<HH", 16_000, 16_000)), 16_000**2),
    "lossless WEBP": (patched(SMALL["lossless WEBP"], 21, struct.pack("<I", 0x0FFFFFFF)), 16_384**2),
    "frame GIF": (
        b"GIF89a\x0a\0\x0a\0\0\0\0!\xf9\x04\x08\0\0\0\0," + struct.pack("<4HBBB", 0, 0, 65_535, 65_535, 0, 8, 0),
        65_535**2,
    ),
}


class TestLimits:
    @pytest.mark.parametrize("kind", BOMBS)
    def test_of_pixels_are_checked_in_the_header(self, kind: str) -> None:
        data, pixels = BOMBS[kind]
        began = time.perf_counter()
        with pytest.raises(ImageTooLarge) as raised:
            decode(data, PREPROCESSING)
        assert time.perf_counter() - began < 1
        assert (raised.value.field, raised.value.value) == ("image", pixels)
        assert str(raised.value.bound) in raised.value.message
        assert raised.value.bound < pixels


# VmHWM and not getrusage, whose peak a child inherits from the process that starts it.
MEASURE = """
import re, sys
from pathlib import Path
from service.errors import InvalidImage
from service.images.decode import decode
from service.images.transforms import Preprocessing

def megabytes(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000

errors, most = [], 0.0
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = megabytes("VmRSS")
    for _ in range(5 if path.name.startswith("broken") else 1):
        try:
            decode(data, Preprocessing(resize=225, crop=192))
        except InvalidImage as error:
            errors.append(error)
    extra = megabytes("VmHWM") - before
    most = max(most, extra)
    print(path.name, extra)
print(len(errors), most)
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
            "too large.png": png(5500, 5500, 8, 2, bytes(5500 * 5500 * 3)),
            "broken.png": rgba[: len(rgba) // 2],
        }
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        run = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
        errors, megabytes = run.stdout.split()[-2:]
        assert errors == "7", f"only the broken one, five times, a large one and the flood of text:\n{run.stdout}"
        assert float(megabytes) < 100, run.stdout
