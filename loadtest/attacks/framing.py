"""Requests whose frames are odd: what h11's and llhttp's own tests try, written anew. Each on a connection of its own.

A request whose end two readers may see in different places must not be answered twice: what is hidden in it is
``SMUGGLED``, and whoever answers that was led astray.
"""

from __future__ import annotations

from dataclasses import dataclass

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
REFUSED = (400,)
ONCE = (200, 400, 415, 422)


@dataclass(frozen=True, slots=True)
class Case:
    """Bytes, and what may be answered to them.

    Attributes:
        first: statuses of which the first answer is one; none: it may be silent, too.
        most: answers.
        hangs_up: whether the server must close the connection then.
    """

    name: str
    sent: bytes
    first: tuple[int, ...] = REFUSED
    most: int = 1
    hangs_up: bool = True


def post(*headers: str, body: bytes = b"") -> bytes:
    lines = ["POST /classify HTTP/1.1", "Host: x", "Content-Type: image/jpeg", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def get(line: bytes = b"GET /health/live HTTP/1.1", *headers: bytes) -> bytes:
    return b"\r\n".join([line, *(headers or (b"Host: x",)), b"", b""])


CHUNKED = "Transfer-Encoding: chunked"

CASES = [
    # two lengths
    Case("length and chunks", post("Content-Length: 4", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED)),
    Case("chunks and length", post(CHUNKED, "Content-Length: 4", body=b"0\r\n\r\n" + SMUGGLED)),
    Case("two lengths that differ", post("Content-Length: 0", "Content-Length: 37", body=SMUGGLED)),
    Case("a list of lengths", post("Content-Length: 0, 37", body=SMUGGLED)),
    *(
        Case(f"length {value!r}", post(f"Content-Length: {value}", body=SMUGGLED))
        for value in ("+3", "-1", "0x3", "3 3", "1_0", "", "3;", "٣".encode().decode("latin-1"), "9" * 30)
    ),
    # codings
    *(
        Case(f"coding {value!r}", post(f"Transfer-Encoding: {value}", body=b"0\r\n\r\n" + SMUGGLED))
        for value in ("identity", "xchunked", "chunked, identity", "chunked;q=1", "chunk", "\x0bchunked")
    ),
    Case("coding with a space before its colon", post("Transfer-Encoding : chunked", body=b"0\r\n\r\n" + SMUGGLED)),
    Case("coding twice", post(CHUNKED, "Transfer-Encoding: identity", body=b"0\r\n\r\n" + SMUGGLED)),
    Case("coding in HTTP/1.0", post(CHUNKED, body=b"0\r\n\r\n" + SMUGGLED).replace(b"1.1", b"1.0", 1), ONCE),
    # chunks
    *(
        Case(f"chunk size {size!r}", post(CHUNKED, body=size + b"\r\nabc\r\n0\r\n\r\n" + SMUGGLED))
        for size in (b"0x3", b"+3", b"-3", b"3 3", b"g", b"", b"3\0", b"f" * 17, b" 3")
    ),
    Case("chunk size ended by LF", post(CHUNKED, body=b"3\nabc\r\n0\r\n\r\n" + SMUGGLED)),
    Case("chunk longer than its size", post(CHUNKED, body=b"3\r\nabcdef\r\n0\r\n\r\n" + SMUGGLED)),
    Case("chunk ended by LF", post(CHUNKED, body=b"3\r\nabc\n0\r\n\r\n" + SMUGGLED)),
    Case("chunk extension with LF", post(CHUNKED, body=b"3;a\nb\r\nabc\r\n0\r\n\r\n" + SMUGGLED)),
    # headers
    *(
        Case(f"header {line!r}", get(b"GET /health/live HTTP/1.1", b"Host: x", line))
        for line in (b"X y: 1", b"X\0: 1", b": 1", b"X", b"X: a\0b", b"X: a\rb", b"(X): 1", b"\x80: 1", b" X: 1")
    ),
    Case("line folded", get(b"GET /health/live HTTP/1.1", b"Host: x", b"X: 1\r\n 2"), (200, 400), hangs_up=False),
    Case("header ended by LF", b"GET /health/live HTTP/1.1\nHost: x\n\n", (200, 400), hangs_up=False),
    Case("no host", b"GET /health/live HTTP/1.1\r\n\r\n"),
    Case("two hosts", get(b"GET /health/live HTTP/1.1", b"Host: x", b"Host: y")),
    # request lines
    *(
        Case(f"line {line!r}", get(line))
        for line in (
            b"GET",
            b"GET / HTTP",
            b"GET / HTTP/1",
            b"GET / http/1.1",
            b"GET / HTTP/9.9",
            b"GET / HTTQ/1.1",
            b"GET /\0 HTTP/1.1",
            b"G\x80T / HTTP/1.1",
            b"GET / HTTP/1.1 more",
        )
    ),
    Case("HTTP/0.9", get(b"GET /health/live"), (200, 400)),
    Case("method nobody knows", get(b"LOWFIRST /health/live HTTP/1.1"), (400, 405, 501), hangs_up=False),
    Case("lower case", get(b"get /health/live HTTP/1.1"), (400, 405, 501), hangs_up=False),
    Case("absolute form", get(b"GET http://x/health/live HTTP/1.1"), (200, 400, 404), hangs_up=False),
    Case("asterisk", get(b"OPTIONS * HTTP/1.1"), (200, 400, 404, 405), hangs_up=False),
    Case("CONNECT", get(b"CONNECT x:80 HTTP/1.1"), (400, 404, 405), hangs_up=False),
    Case("HTTP/2 at once", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    Case("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    Case("path out of the root", get(b"GET /../../etc/passwd HTTP/1.1"), (400, 404), hangs_up=False),
    Case("path with zeros", get(b"GET /%00 HTTP/1.1"), (400, 404), hangs_up=False),
    # what is right
    Case("empty lines before", b"\r\n\r\n" + LIVE, (200,), hangs_up=False),
    Case("eight in a row", LIVE * 8, (200,), most=8, hangs_up=False),
    Case("two bodies in a row", (post("Content-Length: 3", body=b"abc")) * 2, (415,), most=2, hangs_up=False),
    Case(
        "chunks with extensions and trailers",
        post(CHUNKED, body=b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n"),
        (415,),
        hangs_up=False,
    ),
    Case("length 0", post("Content-Length: 0"), (400,), hangs_up=False),
    Case("last of a connection", get(b"GET /health/live HTTP/1.1", b"Host: x", b"Connection: close"), (200,)),
]
