"""Converts rows to the bytes of a file and back, as JSON lines or Parquet."""

from __future__ import annotations

import importlib
import io
import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from service.errors import InvalidOption

Format = Literal["jsonl", "parquet"]
Row = Mapping[str, Any]

SUFFIXES: Mapping[Format, str] = {"jsonl": ".jsonl", "parquet": ".parquet"}


def line(row: Row) -> bytes:
    """One row as a line of JSON; bytes in base64."""
    return json.dumps(row, separators=(",", ":"), default=_plain).encode() + b"\n"


def encode(rows: Sequence[Row], form: Format) -> bytes:
    """The bytes of a whole file."""
    return b"".join(map(line, rows)) if form == "jsonl" else _parquet(rows)


def decode(data: bytes, name: str) -> Iterator[Row | None]:
    """The rows of the file ``name``; None for a line that cannot be read, for example after a power cut.

    Raises:
        InvalidOption: the file is Parquet, and the package for it is not installed.
        ValueError: the file is not valid Parquet.
    """
    if name.endswith(SUFFIXES["parquet"]):
        check("parquet", "from_log", name)
        parquet = importlib.import_module("pyarrow.parquet")
        for batch in parquet.ParquetFile(io.BytesIO(data)).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
        return
    for text in data.splitlines():
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        yield row if isinstance(row, dict) else None


def check(form: Format, field: str, value: str) -> None:
    """Raises InvalidOption for ``field`` if the package for this format is missing."""
    if form == "parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise InvalidOption(field, value, "jsonl, or pip install '.[log]' for Parquet") from error


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return b64encode(value).decode()
    raise TypeError(f"{type(value)} has no JSON representation")


def _parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    strings = ("request_id", "image_sha256", "image_digest", "model", "weights_sha256", "runtime", "precision", "label")
    schema = pa.schema(
        {
            "time": pa.float64(),
            **dict.fromkeys((*strings, "exit", "reason"), pa.string()),
            **dict.fromkeys(("index", "image_bytes", "answer", "stage"), pa.int64()),
            **dict.fromkeys(("confidence", "threshold", "ms"), pa.float64()),
            "drawn": pa.bool_(),
            "temperatures": pa.list_(pa.float64()),
            "outputs": pa.list_(pa.list_(pa.float32())),
            "image": pa.binary(),
        }
    )
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file, compression="zstd")
    return file.getvalue()
