"""Pixels of every format, against PIL's own."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import service.images.decode as decoding
from service.images.decode import decode, photograph
from service.images.transforms import Preprocessing
from tests.images.encoding import PREPROCESSING, boxed, chunk, decoded, encoded, oriented, picture, pixels_of, png, riff


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

    @pytest.mark.parametrize(
        "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"restart_marker_rows": 1}]
    )
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_of_jpeg_are_those_of_pil(self, mode: str, options: dict[str, Any]) -> None:
        data = encoded(picture(501, 377).convert(mode), "JPEG", **options)
        assert np.array_equal(pixels_of(photograph(data)), pixels_of(Image.open(io.BytesIO(data))))

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("scale", [2, 4, 8])
    def test_of_jpeg_at_a_fraction_are_those_of_pil(self, mode: str, scale: int) -> None:
        data = encoded(picture(1205, 903).convert(mode), "JPEG")
        image = Image.open(io.BytesIO(data))
        image.draft(None, (1205 // scale, 903 // scale))
        crop = 903 // scale - 1
        square = Preprocessing(resize=crop, crop=crop).source_square(1205 / scale, 903 / scale)
        assert square[1] == crop
        reference = pixels_of(image.convert("RGB").crop(square[0]).resize((crop, crop), Image.Resampling.BILINEAR))
        assert np.abs(decoded(data, Preprocessing(resize=crop, crop=crop)) - reference).max() <= 1

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

    def test_of_16_bit_colour_with_a_transparent_one_is_that_of_8_bits(self) -> None:
        colours = np.asarray(picture())
        key = colours[100, 100]
        deep = chunk(b"tRNS", np.repeat(key, 2).tobytes())
        plain = chunk(b"tRNS", key.astype(">u2").tobytes())
        samples = (colours.astype(">u2") * 257).tobytes()
        twin = decoded(png(300, 240, 8, 2, colours.tobytes(), plain))
        assert np.array_equal(decoded(png(300, 240, 16, 2, samples, deep)), twin)

    @pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
    @pytest.mark.parametrize("value", [0, 1])
    def test_of_grey_with_a_transparent_value_is_laid_over_white(self, bits: int, value: int) -> None:
        """A column of the transparent value, then one of another, by turns of 8 pixels; any depth, one picture."""
        most = 2**bits - 1
        columns = np.repeat(np.tile(np.array([value * most // most, most - value]), 12), 16)[:192]
        rows = np.tile(columns, (192, 1))
        if bits == 16:
            raw = rows.astype(">u2").tobytes()
        else:
            flat = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
            raw = np.packbits(flat.reshape(192, -1), axis=1).tobytes()
        square = decode(png(192, 192, bits, 0, raw, chunk(b"tRNS", struct.pack(">H", value))), Preprocessing(192, 192))
        shown = np.where(columns == value, 255, columns * 255 // most)
        assert np.abs(square[0].numpy().astype(int) - shown).max() <= 1


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

    def test_of_a_bmp_whose_alpha_is_zero_everywhere_is_opaque(self) -> None:
        data = encoded(picture().convert("RGBA"), "BMP")
        masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        pixels = np.frombuffer(data[-300 * 240 * 4 :], np.uint8).reshape(-1, 4).copy()
        pixels[:, 3] = 0
        header = struct.pack("<IiiHHIIiiII", 108, 300, 240, 1, 32, 3, 0, 0, 0, 0, 0) + masks + bytes(52)

        def bmp() -> bytes:
            return b"BM" + struct.pack("<III", 0, 0, 122) + header + pixels.tobytes()

        assert np.abs(decoded(bmp()) - boxed(picture())).max() <= 1
        pixels[0, 3] = 1
        assert decoded(bmp()).min() == 255


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
