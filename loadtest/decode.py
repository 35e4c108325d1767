"""How fast photographs are decoded, by which library, and what reducing them in the decoder does to accuracy.

    python loadtest/decode.py
    python loadtest/decode.py --data DIR

Both libraries' pixels go through the same crop and resize, in one thread; ``decode`` is what the server does. With
``--data`` the photographs are those of ``DIR/val``, and as many as ``--limit`` are also enlarged to 4,000 pixels, saved
as JPEG of quality 90, decoded in full and reduced in the decoder, and classified by the shipped model.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torchvision.io import decode_image

from service.evaluation.passes import Passes, check_classes
from service.images.decode import decode, resize, stack
from service.images.pixels import Pixels
from service.images.transforms import Preprocessing
from service.inference.device import cores
from service.inference.predictor import Predictor
from service.settings import SHIPPED_MODEL, SHIPPED_STORE
from service.store import ModelStore
from service.training.data import Photographs, find

EXAMPLES = Path(__file__).resolve().parent.parent / "tests" / "examples"
FORMATS = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"quality": 90}}
LARGE = 4000
BATCH_SIZE = 64

Decoder = Callable[[bytes, Preprocessing], Tensor]


@dataclass(frozen=True, slots=True)
class Speed:
    """Milliseconds an image: the median of the rounds, the least and the most."""

    format: str
    size: int
    decoder: str
    ms: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What the shipped model makes of photographs decoded one way: shares that are right, and median milliseconds."""

    decoded: str
    high: float
    cascade: float
    ms: float


@dataclass(frozen=True, slots=True)
class Enlarged:
    """One photograph, enlarged: its crop decoded in full and reduced, uint8 (3, R, R), and milliseconds of each."""

    target: int
    squares: tuple[Tensor, Tensor]
    ms: tuple[float, float]


def main(
    data: Annotated[
        Path | None, typer.Option(help="Folder with val/<class>/ photographs of the model's classes.")
    ] = None,
    sizes: Annotated[list[int], typer.Option("--size", min=1, help="Longer sides.")] = [224, 500, LARGE],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; each decodes every image by every library.")] = 7,
    limit: Annotated[int, typer.Option(min=1, help="Photographs to enlarge, of every class alike.")] = 300,
    precision: Annotated[str, typer.Option(help="That the model computes in.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write JSON there.")] = None,
) -> None:
    """Measure decoding."""
    torch.set_num_threads(1)
    console = Console()
    predictor = Predictor.load(ModelStore(SHIPPED_STORE).find(SHIPPED_MODEL), precision=precision)
    preprocessing = predictor.spec.preprocessing
    photographs = None if data is None else find(data, "val")
    paths = sorted(EXAMPLES.glob("*.jpg")) if photographs is None else list(_alike(photographs, 10).paths)
    speeds = [
        speed for size in sizes for kind in FORMATS for speed in _speeds(paths, kind, size, preprocessing, repeats)
    ]
    console.print(_speed_table(speeds, preprocessing))
    answers: list[Answers] = []
    if photographs is not None:
        check_classes(photographs, predictor.spec)
        answers = _accuracy(_alike(photographs, limit), predictor)
        console.print(_accuracy_table(answers, min(limit, len(photographs))))
    if out is not None:
        result = {"speeds": [asdict(speed) for speed in speeds], "answers": [asdict(each) for each in answers]}
        out.write_text(json.dumps(result, indent=1) + "\n")


def _alike(photographs: Photographs, limit: int) -> Photographs:
    """``limit`` photographs, spread over every class and as many of each."""
    classes = len(photographs.folders)
    chosen: list[int] = []
    for target in range(classes):
        members = [index for index, each in enumerate(photographs.targets) if each == target]
        share = min(limit // classes + (target < limit % classes), len(members))
        chosen += [members[place * len(members) // share] for place in range(share)]
    return photographs.subset(chosen)


def _pillow(data: bytes, preprocessing: Preprocessing) -> Tensor:
    return _by_pillow(data, preprocessing, reduced=True)


def _in_full(data: bytes, preprocessing: Preprocessing) -> Tensor:
    return _by_pillow(data, preprocessing, reduced=False)


def _by_pillow(data: bytes, preprocessing: Preprocessing, reduced: bool) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:
        if reduced:
            image.draft(None, (preprocessing.resize, preprocessing.resize))
        box, side = preprocessing.source_square(*image.size)
        return _cropped(np.array(image.crop(box)), side, preprocessing.crop)


def _torchvision(data: bytes, preprocessing: Preprocessing) -> Tensor:
    pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), "RGB").numpy().transpose(1, 2, 0)
    (left, top, right, bottom), side = preprocessing.source_square(pixels.shape[1], pixels.shape[0])
    return _cropped(pixels[top:bottom, left:right], side, preprocessing.crop)


def _cropped(pixels: Pixels, side: int, crop: int) -> Tensor:
    """The middle, uint8 (3, crop, crop), of ``pixels`` resized to ``side``, as the server resizes."""
    start = (side - crop) // 2
    square = resize(pixels, side)[start : start + crop, start : start + crop]
    return torch.from_numpy(square.transpose(2, 0, 1))


DECODERS: dict[str, Decoder] = {"Pillow": _pillow, "torchvision": _torchvision, "decode": decode}


def _speeds(paths: Sequence[Path], kind: str, size: int, preprocessing: Preprocessing, repeats: int) -> Iterator[Speed]:
    """Every decoder on the same files, turn by turn."""
    files = [_encoded(path, kind, size) for path in (paths[:2] if size >= LARGE else paths)]
    rounds: dict[str, list[float]] = {name: [] for name in DECODERS}
    for _ in range(repeats):
        for name, decoder in DECODERS.items():
            rounds[name].append(sum(_timed(decoder, data, preprocessing)[1] for data in files) / len(files))
    for name, each in rounds.items():
        yield Speed(kind, size, name, median(each), min(each), max(each))


def _encoded(path: Path, kind: str, size: int) -> bytes:
    """The photograph, 4:3, its longer side of ``size`` pixels."""
    file = io.BytesIO()
    with Image.open(path) as image:
        fitted = ImageOps.fit(image.convert("RGB"), (size, size * 3 // 4), Image.Resampling.BICUBIC)
    fitted.save(file, kind, **FORMATS[kind])
    return file.getvalue()


def _timed(decoder: Decoder, data: bytes, preprocessing: Preprocessing) -> tuple[Tensor, float]:
    began = time.perf_counter()
    square = decoder(data, preprocessing)
    return square, 1e3 * (time.perf_counter() - began)


def _accuracy(photographs: Photographs, predictor: Predictor) -> list[Answers]:
    """Both ways of decoding, of the same enlarged photographs."""
    passes: tuple[list[Passes], list[Passes]] = [], []
    ms: list[tuple[float, float]] = []
    with ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as threads:

        def enlarge(index: int) -> Enlarged:
            return _enlarge(photographs.paths[index], photographs.targets[index], predictor.spec.preprocessing)

        total = len(photographs)
        every = iter(track(threads.map(enlarge, range(total)), "enlarging and decoding", total, transient=True))
        while batch := list(islice(every, BATCH_SIZE)):
            targets = torch.tensor([each.target for each in batch])
            ms += [each.ms for each in batch]
            for way, kept in enumerate(passes):
                logits = predictor.answers_to(stack([each.squares[way] for each in batch]))
                kept.append(Passes(tuple(found.float() for found in logits), targets))
    return [
        _answers(name, kept, predictor, median(each[way] for each in ms))
        for way, (name, kept) in enumerate(zip(("in full", "reduced"), passes, strict=True))
    ]


def _enlarge(path: Path, target: int, preprocessing: Preprocessing) -> Enlarged:
    file = io.BytesIO()
    with Image.open(path) as image:
        scale = LARGE / max(image.size)
        size = round(image.width * scale), round(image.height * scale)
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", **FORMATS["JPEG"])
    full, full_ms = _timed(_in_full, file.getvalue(), preprocessing)
    reduced, reduced_ms = _timed(decode, file.getvalue(), preprocessing)
    return Enlarged(target, (full, reduced), (full_ms, reduced_ms))


def _answers(decoded: str, batches: Sequence[Passes], predictor: Predictor, ms: float) -> Answers:
    logits = tuple(map(torch.cat, zip(*(batch.logits for batch in batches), strict=True)))
    passes = Passes(logits, torch.cat([batch.targets for batch in batches]))
    answers = passes.answers(predictor.spec.temperatures)
    threshold = predictor.spec.start_threshold(predictor.runtime, predictor.precision)
    return Answers(decoded, float(answers.right[:, -1].mean()), answers.accuracy(threshold), ms)


def _speed_table(speeds: Sequence[Speed], preprocessing: Preprocessing) -> Table:
    table = Table("format", "pixels", *DECODERS, title=f"ms an image, decoded and resized to {preprocessing.crop}")
    for start in range(0, len(speeds), len(DECODERS)):
        row = speeds[start : start + len(DECODERS)]
        cells = [f"{each.ms:.3g} ({each.least:.3g}..{each.most:.3g})" for each in row]
        table.add_row(row[0].format, str(row[0].size), *cells)
    return table


def _accuracy_table(answers: Sequence[Answers], images: int) -> Table:
    table = Table("decoded", "high, top-1 %", "cascade, top-1 %", "ms", title=f"{images} photographs of {LARGE} pixels")
    for each in answers:
        table.add_row(each.decoded, f"{100 * each.high:.2f}", f"{100 * each.cascade:.2f}", f"{each.ms:.1f}")
    full, reduced = answers
    points = f"{100 * (reduced.high - full.high):+.2f}", f"{100 * (reduced.cascade - full.cascade):+.2f}"
    table.add_row("difference", *points, f"{full.ms / reduced.ms:.1f} times faster")
    return table


if __name__ == "__main__":
    typer.run(main)
