"""The photographs that are posted, chosen once, and the files that the load generators read them from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from service.training.data import find

EXAMPLES = Path(__file__).resolve().parent.parent / "tests" / "examples"
SEED = 0

JPEG = "image/jpeg"
BOUNDARY = "lowfirst-loadtest"
PART = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="photograph.jpg"\r\n'
    f"Content-Type: {JPEG}\r\n\r\n"
).encode()
END = f"\r\n--{BOUNDARY}--\r\n".encode()


@dataclass(frozen=True, slots=True)
class Bodies:
    """Requests' bodies of one form.

    Attributes:
        content_type: of every one.
        manifest: a file that lists a file for each body, one a line.
        blob: a file of all bodies, one after another.
        offsets: (first byte, bytes) of each body in it.
    """

    content_type: str
    manifest: Path
    blob: Path
    offsets: tuple[tuple[int, int], ...]

    def read(self) -> list[bytes]:
        """All bodies, in order."""
        return [Path(line).read_bytes() for line in self.manifest.read_text().splitlines()]


def choose(data: Path | None, count: int) -> list[Path]:
    """``count`` photographs of ``data/val``, as many of each class as of any other; without ``data`` the examples.

    The same for the same files.

    Raises:
        DataError: ``data`` holds no photographs.
    """
    if data is None:
        return sorted(EXAMPLES.glob("*.jpg"))
    photographs = find(data, "val")
    classes = len(photographs.folders)
    random = Random(SEED)
    chosen: list[Path] = []
    for target in range(classes):
        members = [p for p, t in zip(photographs.paths, photographs.targets, strict=True) if t == target]
        share = count // classes + (target < count % classes)
        chosen += random.sample(members, min(share, len(members)))
    return chosen


def raw(photographs: list[Path], folder: Path) -> Bodies:
    """Every photograph as a body by itself; the files are made in ``folder``."""
    return _write([path.read_bytes() for path in photographs], JPEG, folder / "raw")


def multipart(photographs: list[Path], folder: Path) -> Bodies:
    """Every photograph as the one part, ``images``, of a multipart body; the files are made in ``folder``."""
    content_type = f"multipart/form-data; boundary={BOUNDARY}"
    return _write([PART + path.read_bytes() + END for path in photographs], content_type, folder / "multipart")


def _write(bodies: list[bytes], content_type: str, folder: Path) -> Bodies:
    folder.mkdir(parents=True)
    paths = [folder / f"{index:04}" for index in range(len(bodies))]
    offsets, start = [], 0
    for path, body in zip(paths, bodies, strict=True):
        path.write_bytes(body)
        offsets.append((start, len(body)))
        start += len(body)
    manifest, blob = folder / "manifest", folder / "blob"
    manifest.write_text("".join(f"{path}\n" for path in paths))
    blob.write_bytes(b"".join(bodies))
    return Bodies(content_type, manifest, blob, tuple(offsets))
