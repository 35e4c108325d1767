"""Images out of request bodies: honest, broken and hostile."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from service.api.bodies import MAX_OTHER_PARTS, many_images
from service.errors import BadRequest, InvalidOption

RAW = {"Content-Type": "image/jpeg"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=edge"}
HEAD = b'--edge\r\nContent-Disposition: form-data; name="image"\r\n\r\n'


def request(content_type: str) -> Request:
    """A request with that header."""
    return Request({"type": "http", "headers": [(b"content-type", content_type.encode("latin-1"))]})


@given(st.lists(st.tuples(st.sampled_from([None, "a.jpg", 'a"b;c.jpg', "é.jpg"]), st.binary()), min_size=1, max_size=5))
def test_multipart_gives_back_the_bytes_that_went_in(images: list[tuple[str | None, bytes]]) -> None:
    sent = httpx.Request("POST", "http://test", files=[("image", image) for image in images])
    assert many_images(request(sent.headers["Content-Type"]), sent.read(), 5) == [data for _, data in images]


@given(st.lists(st.sampled_from([b"--edge", b"--", b"\r\n", b"\r\n\r\n", HEAD, b"name=", b":", b"x", b"\xff"])))
def test_any_bytes_are_images_or_a_bad_request_and_nothing_else(pieces: list[bytes]) -> None:
    with suppress(BadRequest, InvalidOption):
        many_images(request(MULTIPART["Content-Type"]), b"".join(pieces), 64)


def test_what_looks_like_a_boundary_inside_a_line_is_content() -> None:
    content = b"a--edge\r\n-edge--\r--edge"
    body = b"preamble\r\n" + HEAD + content + b"\r\n--edge \t\r\n" + HEAD[8:] + b"\r\n--edge--epilogue\r\n--edge"
    assert many_images(request(MULTIPART["Content-Type"]), body, 2) == [content, b""]


def test_other_parts_are_passed_over_up_to_a_limit() -> None:
    other = b'--edge\r\nContent-Disposition: form-data; name="note"\r\n\r\nx\r\n'
    image = HEAD + b"data\r\n--edge--"
    assert many_images(request(MULTIPART["Content-Type"]), other * MAX_OTHER_PARTS + image, 1) == [b"data"]
    with pytest.raises(BadRequest, match="more than 17 parts"):
        many_images(request(MULTIPART["Content-Type"]), other * 100_000 + image, 1)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", HEAD + b"x\r\n--edge--"),
        ("multipart/form-data; boundary=", HEAD + b"x\r\n--edge--"),
        ("multipart/form-data; boundary=other", HEAD + b"x\r\n--edge--"),
        ("multipart/form-data; boundary=edge", HEAD + b"x"),
        ("multipart/form-data; boundary=edge", HEAD + b"x\r\n--edge\r\n"),
        ("multipart/form-data; boundary=edge", HEAD.replace(b"image", b"photo") + b"x\r\n--edge--"),
        ("multipart/form-data; boundary=edge", HEAD.replace(b"; name", b"; title") + b"x\r\n--edge--"),
        ("multipart/form-data; boundary=edge", b"--edge\r\n\r\nx\r\n--edge--"),
        ("multipart/form-data; boundary=edge", b"--edge\r\nX: " + b"x" * 9000 + b"\r\n\r\nx\r\n--edge--"),
        ("multipart/form-data; boundary=edge", HEAD[:-4] + b"\r\nContent-Transfer-Encoding: x\r\n\r\nx\r\n--edge--"),
        ("multipart/form-data; boundary=edge", b"--edge--"),
        ("multipart/form-data; boundary=edge", b""),
        ("application/json", b""),
        ("application/json", b"{"),
        ("application/json", b'{"image": "not base64!"}'),
        ("application/json", b'{"image": "abc"}'),
        ("application/json", '{"image": "é"}'.encode()),
        ("application/json", b'{"image": ""}'),
        ("image/jpeg", b""),
    ],
)
async def test_a_broken_body_is_a_bad_request_and_the_next_is_served(
    client: httpx.AsyncClient,
    error_of: Callable[..., dict[str, Any]],
    jpeg: bytes,
    content_type: str,
    body: bytes,
) -> None:
    response = await client.post("/classify", content=body, headers={"Content-Type": content_type})
    error_of(response, 400, "bad_request")
    assert (await client.post("/classify", content=jpeg, headers=RAW)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "field"),
    [("[]", None), ('"text"', None), ("{}", "image"), ('{"image": 5}', "image"), ('{"image": "", "url": ""}', "url")],
)
async def test_json_of_another_shape_names_the_field(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]], body: str, field: str | None
) -> None:
    response = await client.post("/classify", content=body, headers={"Content-Type": "application/json"})
    assert error_of(response, 422, "invalid_field")["field"] == field


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/classify"),
        ("POST", "/classify/json"),
        ("PATCH", "/config/threshold"),
        ("PATCH", "/config/model"),
        ("POST", "/v2/models/tiny/infer"),
    ],
)
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{" + b'"":1,' * 600 + b'"":1}', 422, "invalid_field"),
        (b'{"image":[' + b"0," * 600 + b"0]}", 422, "invalid_field"),
        (b'{"a":' * 600 + b"1" + b"}" * 600, 400, "bad_request"),
        (b"[" * 4000, 400, "bad_request"),
    ],
    ids=["keys", "elements", "depth", "no end"],
)
async def test_json_of_too_many_parts_is_refused_before_anything_is_made_of_it(
    client: httpx.AsyncClient,
    error_of: Callable[..., dict[str, Any]],
    method: str,
    path: str,
    body: bytes,
    status: int,
    code: str,
) -> None:
    response = await client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert len(response.content) < 500
    if path.startswith("/v2"):
        assert response.status_code == status
    else:
        error_of(response, status, code)


@pytest.mark.anyio
async def test_json_of_a_million_keys_takes_no_memory(client: httpx.AsyncClient) -> None:
    body = b"{" + b'"0":1,' * 2_000_000 + b'"0":1}'
    tracemalloc.start()
    response = await client.post("/classify", content=body, headers={"Content-Type": "application/json"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert response.status_code == 422
    assert peak < 3 * len(body)


@pytest.mark.anyio
async def test_two_images_for_one_answer_are_refused(
    client: httpx.AsyncClient, jpeg: bytes, error_of: Callable[..., dict[str, Any]]
) -> None:
    response = await client.post("/classify", files=[("image", ("same.jpg", jpeg))] * 2)
    error = error_of(response, 422, "invalid_field")
    assert (error["field"], error["value"], error["bound"]) == ("image", 2, "at most 1 parts")


@pytest.mark.anyio
async def test_a_content_type_with_parameters_or_capitals_is_read(client: httpx.AsyncClient, jpeg: bytes) -> None:
    encoded = json.dumps({"image": base64.b64encode(jpeg).decode()})
    for kind, body in (("IMAGE/JPEG; q=1", jpeg), ("Application/JSON; charset=utf-8", encoded)):
        response = await client.post("/classify", content=body, headers={"Content-Type": kind})
        assert response.status_code == 200


def in_lines(data: bytes, width: int = 76) -> str:
    """As MIME, PEM and `base64` write it."""
    text = base64.b64encode(data).decode()
    return "\r\n".join(text[at : at + width] for at in range(0, len(text), width))


WRITTEN: dict[str, Callable[[bytes], str]] = {
    "one line": lambda data: base64.b64encode(data).decode(),
    "lines": in_lines,
    "a line with an end": lambda data: base64.encodebytes(data).decode(),
    "indented": lambda data: in_lines(data).replace("\r\n", "\n\t  "),
    "data URI": lambda data: f"data:image/jpeg;base64,{base64.b64encode(data).decode()}",
    "data URI in lines": lambda data: f"DATA:image/jpeg;charset=x;BASE64,\n{in_lines(data)}",
    "data URI without a type": lambda data: f"data:;base64,{base64.b64encode(data).decode()}",
}


@pytest.mark.anyio
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("form", WRITTEN)
async def test_base64_is_read_as_it_is_written_elsewhere(
    client: httpx.AsyncClient, jpeg: bytes, form: str, mark: bytes
) -> None:
    text = WRITTEN[form](jpeg)
    for path in ("/classify", "/classify/json"):
        body = mark + json.dumps({"image": text}).encode()
        response = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 200, response.text
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    body = mark + json.dumps({"inputs": [tensor]}).encode()
    answer = (await client.post("/v2/models/tiny/infer", content=body)).json()
    assert answer["outputs"][1]["data"] == [response.json()["label"]]
    with_tail = {"Inference-Header-Content-Length": str(len(body))}
    assert (await client.post("/v2/models/tiny/infer", content=body, headers=with_tail)).json() == answer


@pytest.mark.anyio
@pytest.mark.parametrize("text", ["data:image/jpeg,abcd", "data:", "data:image/jpeg;base64", "data:;base64,é", "a b!="])
async def test_what_is_neither_base64_nor_a_data_uri_of_it_is_a_bad_request(
    client: httpx.AsyncClient, error_of: Callable[..., dict[str, Any]], text: str
) -> None:
    for path in ("/classify", "/classify/json"):
        error = error_of(await client.post(path, json={"image": text}), 400, "bad_request")
        assert error["field"] == "image"


@pytest.mark.anyio
async def test_the_largest_image_fits_however_its_base64_is_written(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    padded = jpeg + bytes(100_000)  # what follows a picture is not read
    async with connect(make_app(max_image_bytes=len(padded))) as client:
        for form in WRITTEN.values():
            assert (await client.post("/classify/json", json={"image": form(padded)})).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "multipart/form-data; boundary=edge", ""])
async def test_the_route_for_json_reads_nothing_else(
    client: httpx.AsyncClient, jpeg: bytes, error_of: Callable[..., dict[str, Any]], kind: str
) -> None:
    response = await client.post("/classify/json", content=jpeg, headers={"Content-Type": kind})
    assert error_of(response, 415, "unsupported_body")["bound"] == "application/json"
