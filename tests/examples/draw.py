"""Draws the example pictures in this folder: ``python tests/examples/draw.py FOLDER``.

They stand in for photographs where there is no data set, so they are drawn with light, texture and noise; each is
decided by its seed alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Random = np.random.Generator
Colour = tuple[int, int, int]

WIDTH, HEIGHT = 500, 375
SCALE = 2  # drawn larger, then reduced, for smooth edges

# File name -> what is drawn, and the seed.
EXAMPLES = {
    "church.jpg": ("church", 1),
    "gas-pump.jpg": ("gas pump", 9),
    "gas-pump-2.jpg": ("gas pump", 1),
    "golf-ball.jpg": ("golf ball", 3),
    "parachute.jpg": ("parachute", 5),
    "parachute-2.jpg": ("parachute", 4),
    "parachute-3.jpg": ("far parachute", 9),
}


def draw(subject: str, seed: int) -> Image.Image:
    """The picture of ``subject`` (a key of ``SUBJECTS``) with ``seed``: RGB, ``WIDTH`` x ``HEIGHT``."""
    random = np.random.default_rng(seed)
    picture = SUBJECTS[subject](random).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    grain = random.normal(0, 5, (HEIGHT, WIDTH, 1))
    return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))


def golf_ball(random: Random) -> Image.Image:
    """A white dimpled ball on grass."""
    picture = _grass(random)
    width, height = picture.size
    radius = int(random.uniform(0.22, 0.36) * height)
    x, y = int(random.uniform(0.42, 0.58) * width), int(random.uniform(0.45, 0.6) * height)
    shadow = Image.new("L", picture.size, 0)
    ImageDraw.Draw(shadow).ellipse((x - radius, y + radius * 0.6, x + radius * 1.5, y + radius * 1.25), fill=150)
    picture.paste((8, 20, 6), mask=shadow.filter(ImageFilter.GaussianBlur(18)))

    grid_y, grid_x = np.mgrid[-1 : 1 : 2 * radius * 1j, -1 : 1 : 2 * radius * 1j]
    depth = np.sqrt(np.clip(1 - grid_x**2 - grid_y**2, 0, None))
    light = np.clip(0.42 + 0.62 * (-0.45 * grid_x - 0.6 * grid_y + 0.66 * depth), 0.1, 1)
    for px, py, pz in _sphere_points(340):
        if pz > 0.05:
            distance = ((grid_x - px) / (0.35 + 0.65 * pz)) ** 2 + ((grid_y - py) / (0.35 + 0.65 * pz)) ** 2
            dimple = np.exp(-distance / 0.0042)
            light += dimple * (0.16 * ((grid_x - px) + (grid_y - py)) / 0.06 - 0.1)
    shade = np.clip(light, 0, 1)[..., None] * np.array([250, 250, 244])
    ball = Image.fromarray(np.clip(shade, 0, 255).astype(np.uint8))
    disc = Image.fromarray(((grid_x**2 + grid_y**2) <= 1).astype(np.uint8) * 255)
    picture.paste(ball, (x - radius, y - radius), disc)
    blades = ImageDraw.Draw(picture)
    for _ in range(160):
        at = x + int(random.uniform(-1.2, 1.2) * radius)
        base = y + int(radius * random.uniform(1.0, 1.2))
        tip = base - int(random.uniform(0.1, 0.3) * radius)
        blades.line((at, base, at + int(random.uniform(-14, 14)), tip), fill=_shade(random, (70, 130, 40)), width=4)
    return picture


def parachute(random: Random) -> Image.Image:
    """A striped canopy with its lines and a jumper, in the sky."""
    picture = _sky(random)
    width, height = picture.size
    pen = ImageDraw.Draw(picture)
    x, y = int(random.uniform(0.42, 0.58) * width), int(random.uniform(0.36, 0.46) * height)
    span, rise = int(random.uniform(0.2, 0.3) * width), int(random.uniform(0.24, 0.32) * height)
    foot = (x + int(random.uniform(-20, 20)), y + int(1.25 * rise))
    colours = [_bright(random) for _ in range(2)] + [(240, 240, 235)]
    gores = 10
    for i in range(gores):
        left, right = (-1 + 2 * i / gores), (-1 + 2 * (i + 1) / gores)
        top = [(x + span * t, y - rise * math.sqrt(max(0.0, 1 - t * t))) for t in np.linspace(left, right, 12)]
        hem = [
            (x + span * t, y + 0.1 * rise * math.sin(math.pi * (t - left) / (right - left)))
            for t in np.linspace(right, left, 12)
        ]
        light = 0.62 + 0.38 * math.cos(1.1 * (left + right) / 2 + 0.5)
        base = colours[i % len(colours)]
        pen.polygon([*top, *hem], fill=_dim(base, light))
        pen.line((x + span * left, y, *foot), fill=(70, 70, 74), width=2)
    pen.line((x + span, y, *foot), fill=(70, 70, 74), width=2)
    size = rise // 9
    pen.ellipse((foot[0] - size // 2, foot[1] - size, foot[0] + size // 2, foot[1]), fill=(40, 34, 30))
    pen.rectangle(
        (foot[0] - size // 2, foot[1], foot[0] + size // 2, foot[1] + 2 * size), fill=_shade(random, (60, 50, 60))
    )
    pen.line((foot[0] - 4, foot[1] + 2 * size, foot[0] - size, foot[1] + 4 * size), fill=(30, 28, 30), width=10)
    pen.line((foot[0] + 4, foot[1] + 2 * size, foot[0] + size, foot[1] + 4 * size), fill=(30, 28, 30), width=10)
    return picture


def far_parachute(random: Random) -> Image.Image:
    """A parachute far away: small in a wide sky, which takes a closer look."""
    near = parachute(random)
    width, height = near.size
    sky = np.asarray(near)[: 16 * SCALE].reshape(-1, 3).mean(0)
    picture = Image.new("RGB", near.size, tuple(int(value) for value in sky))
    picture.paste(near.resize((width // 2, height // 2)), (width // 4, height // 4))
    return picture


def church(random: Random) -> Image.Image:
    """A nave with a steeple, arched windows and a cross, under the sky."""
    picture = _sky(random)
    width, height = picture.size
    ground = int(random.uniform(0.82, 0.9) * height)
    picture.paste(_grass(random).crop((0, 0, width, height - ground)), (0, ground))
    pen = ImageDraw.Draw(picture)
    stone = _shade(random, (196, 180, 156), 22)
    dark = _dim(stone, 0.78)
    roof = _shade(random, (104, 62, 52), 18)
    x = int(random.uniform(0.34, 0.46) * width)
    tower, top = int(0.085 * width), int(random.uniform(0.36, 0.42) * height)
    nave_right, nave_top = x + int(random.uniform(0.32, 0.4) * width), int(random.uniform(0.52, 0.58) * height)
    pen.rectangle((x, nave_top, nave_right, ground), fill=stone)
    pen.polygon(
        [
            (x, nave_top),
            (x + 40, nave_top - int(0.14 * height)),
            (nave_right - 20, nave_top - int(0.14 * height)),
            (nave_right + 16, nave_top),
        ],
        fill=roof,
    )
    pen.rectangle((x - tower, top, x + tower, ground), fill=dark)
    pen.rectangle((x - tower, top, x - tower // 4, ground), fill=stone)
    tip = int(0.07 * height)
    pen.polygon([(x - tower - 8, top), (x, tip), (x + tower + 8, top)], fill=roof)
    pen.polygon([(x, top), (x, tip), (x + tower + 8, top)], fill=_dim(roof, 0.7))
    pen.line((x, tip - 42, x, tip), fill=(40, 36, 34), width=7)
    pen.line((x - 15, tip - 28, x + 15, tip - 28), fill=(40, 36, 34), width=7)
    for level in (top + int(0.07 * height), top + int(0.21 * height)):
        _arch(pen, x, level, int(0.022 * width), int(0.085 * height))
    _arch(pen, x, ground - int(0.13 * height), int(0.03 * width), int(0.13 * height))
    for at in np.linspace(x + tower + 50, nave_right - 40, 4):
        _arch(pen, int(at), nave_top + int(0.07 * height), int(0.018 * width), int(0.17 * height))
    for _ in range(900):
        bx, by = int(random.uniform(x - tower, nave_right - 14)), int(random.uniform(top, ground))
        if by > nave_top or bx < x + tower - 14:
            pen.line((bx, by, bx + 12, by), fill=_shade(random, dark, 12), width=1)
    return picture


def gas_pump(random: Random) -> Image.Image:
    """A pump with its display and hose, on a forecourt."""
    picture = _gradient((186, 196, 204), (120, 118, 116))
    width, height = picture.size
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, int(0.8 * height), width, height), fill=(104, 102, 100))
    body = _bright(random)
    x, half, top = int(random.uniform(0.44, 0.54) * width), int(random.uniform(0.12, 0.15) * width), int(0.12 * height)
    pen.rounded_rectangle((x - half, top, x + half, int(0.9 * height)), 22, fill=body)
    pen.rounded_rectangle((x - half, top, x - half // 2, int(0.9 * height)), 22, fill=_dim(body, 0.8))
    pen.rectangle(
        (x - int(0.8 * half), int(0.2 * height), x + int(0.8 * half), int(0.42 * height)), fill=(226, 228, 224)
    )
    for row, digits in ((0.25, 5), (0.34, 4)):
        for i in range(digits):
            dx = x - int(0.62 * half) + i * int(0.27 * half)
            pen.rectangle((dx, int(row * height) - 16, dx + int(0.2 * half), int(row * height) + 18), fill=(20, 22, 24))
            pen.line(
                (dx + 6, int(row * height), dx + int(0.2 * half) - 6, int(row * height)), fill=(220, 220, 210), width=4
            )
    pen.rectangle(
        (x - int(0.7 * half), int(0.48 * height), x + int(0.7 * half), int(0.58 * height)), fill=(245, 240, 230)
    )
    hose = [
        (x + half + int(0.5 * half * math.sin(t)) + 16, int((0.45 + 0.4 * t / math.pi) * height))
        for t in np.linspace(0, math.pi, 40)
    ]
    pen.line(hose, fill=(22, 22, 24), width=16, joint="curve")
    pen.rectangle((x + half - 6, int(0.4 * height), x + half + 34, int(0.5 * height)), fill=(30, 30, 34))
    return picture


SUBJECTS: dict[str, Callable[[Random], Image.Image]] = {
    "golf ball": golf_ball,
    "parachute": parachute,
    "far parachute": far_parachute,
    "church": church,
    "gas pump": gas_pump,
}


def _grass(random: Random) -> Image.Image:
    size = (WIDTH * SCALE, HEIGHT * SCALE)
    base = _noise(random, size, 8, (52, 96, 30), (112, 160, 62))
    fine = _noise(random, size, 120, (40, 80, 26), (140, 186, 84))
    return Image.blend(base, fine, 0.55)


def _sky(random: Random) -> Image.Image:
    hue = random.uniform(0.85, 1.1)
    sky = _gradient((int(52 * hue), int(104 * hue), int(186 * hue)), (176, 206, 236))
    clouds = np.asarray(_noise(random, sky.size, 5, (0, 0, 0), (255, 255, 255)).convert("L"), dtype=np.float64)
    mask = np.clip((clouds - random.uniform(135, 175)) * 3, 0, 190).astype(np.uint8)
    sky.paste((246, 248, 250), mask=Image.fromarray(mask).filter(ImageFilter.GaussianBlur(12)))
    return sky


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    ramp = np.linspace(0, 1, HEIGHT * SCALE)[:, None, None]
    rows = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
    return Image.fromarray(np.broadcast_to(rows, (HEIGHT * SCALE, WIDTH * SCALE, 3)).astype(np.uint8))


def _noise(random: Random, size: tuple[int, int], cells: int, low: Colour, high: Colour) -> Image.Image:
    coarse: npt.NDArray[np.float64] = random.random((cells, cells * 4 // 3))
    grey = Image.fromarray((coarse * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", size, high), Image.new("RGB", size, low), ImageChops.invert(grey))


def _sphere_points(count: int) -> list[tuple[float, float, float]]:
    """Evenly spread over the unit sphere: a Fibonacci lattice."""
    golden = math.pi * (3 - math.sqrt(5))
    points = []
    for i in range(count):
        z = 1 - 2 * (i + 0.5) / count
        ring = math.sqrt(1 - z * z)
        points.append((ring * math.cos(golden * i), ring * math.sin(golden * i), z))
    return points


def _arch(pen: ImageDraw.ImageDraw, x: int, top: int, half: int, height: int) -> None:
    pen.pieslice((x - half, top - half, x + half, top + half), 180, 360, fill=(44, 46, 58))
    pen.rectangle((x - half, top, x + half, top + height), fill=(44, 46, 58))


def _shade(random: Random, colour: Colour, spread: int = 30) -> Colour:
    shift = int(random.uniform(-spread, spread))
    red, green, blue = (min(255, max(0, channel + shift)) for channel in colour)
    return red, green, blue


def _dim(colour: Colour, light: float) -> Colour:
    red, green, blue = (int(channel * light) for channel in colour)
    return red, green, blue


def _bright(random: Random) -> Colour:
    options: tuple[Colour, ...] = ((204, 40, 36), (236, 150, 30), (34, 84, 180), (240, 208, 50), (30, 130, 76))
    return options[int(random.integers(len(options)))]


def main(folder: Path) -> None:
    """Draw every example into ``folder``."""
    for name, (subject, seed) in EXAMPLES.items():
        draw(subject, seed).save(folder / name, quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
