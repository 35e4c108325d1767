"""Checks of a request's head before any route sees it."""

from __future__ import annotations

from collections.abc import Sequence

from service.errors import BadRequest, HeadTooLarge, LowfirstError

MAX_HEAD_BYTES = 32 * 1024
MAX_QUERY_FIELDS = 64  # each unknown field creates an error, although only the first is reported
AROUND_HEADER = len(b": \r\n")


def refusal_of(
    method: bytes, url: bytes, version: str, headers: Sequence[tuple[bytes, bytes]], received: int
) -> LowfirstError | None:
    """Why a request is refused; None if it is not. ``received``: bytes that may belong to the head, or also to its
    body."""
    if received > MAX_HEAD_BYTES:
        size = len(url) + sum(len(name) + len(value) + AROUND_HEADER for name, value in headers)
        if size > MAX_HEAD_BYTES:
            return too_large(size)
    if method == b"CONNECT":
        return BadRequest("CONNECT is not supported: this is not a proxy", field="method", value="CONNECT")
    hosts = [name for name, _ in headers].count(b"host")
    if hosts > 1 or (not hosts and version != "1.0"):
        return BadRequest(f"the head has {hosts} Host headers; it must have 1", field="Host", value=hosts, bound=1)
    fields = url.count(b"&") + 1
    if fields > MAX_QUERY_FIELDS:
        return BadRequest(
            f"the query has {fields} fields; the limit is {MAX_QUERY_FIELDS}",
            field="query",
            value=fields,
            bound=MAX_QUERY_FIELDS,
        )
    return None


def too_large(size: int) -> HeadTooLarge:
    """The error of a head with this many bytes or more."""
    return HeadTooLarge(
        f"the request's head has {size} bytes or more; the limit is {MAX_HEAD_BYTES}",
        field="head",
        value=size,
        bound=MAX_HEAD_BYTES,
    )
