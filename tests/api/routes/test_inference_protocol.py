"""``/v2``: what the protocol's published client does not send."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

pytestmark = pytest.mark.anyio

INFER = "/v2/models/tiny/infer"
RAW = {"Content-Type": "image/jpeg"}
LENGTH = "Inference-Header-Content-Length"


async def unread() -> AsyncIterator[bytes]:
    """A body that must not be asked for."""
    pytest.fail("the body was read")
    yield b""


def encoded(*images: bytes) -> dict[str, Any]:
    """The images as an input whose data is in the JSON."""
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data}


def binary(*images: bytes, size: int | None = None, shape: list[int] | None = None, **more: Any) -> dict[str, Any]:
    """A request with the images after the JSON."""
    tail = b"".join(struct.pack("<I", len(image)) + image for image in images)
    parameters = {"binary_data_size": len(tail) if size is None else size}
    image = {"name": "image", "datatype": "BYTES", "shape": shape or [len(images)], "parameters": parameters}
    head = json.dumps({"inputs": [{**image, **more}]}).encode()
    return {"content": head + tail, "headers": {LENGTH: str(len(head))}}


def error_of(response: httpx.Response, status: int) -> str:
    """Its error in words, once it is seen to have the protocol's shape."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert response.headers["X-Request-ID"]
    words: str = response.json()["error"]
    assert words
    return words


async def test_an_image_in_json_is_answered_in_json(client: httpx.AsyncClient, jpeg: bytes) -> None:
    response = await client.post(INFER, json={"id": "a", "inputs": [encoded(jpeg)]})
    assert LENGTH not in response.headers
    answer = response.json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("a", "tiny", "1")
    expected = (await client.post("/classify?top_k=4", content=jpeg, headers=RAW)).json()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    probabilities = outputs.pop("probabilities")
    assert probabilities == [best["score"] for best in sorted(expected["top_k"], key=lambda best: best["index"])]
    assert outputs == {name: [expected[name]] for name in outputs}
    listed = (await client.get("/v2/models/tiny")).json()["outputs"]
    assert [(output["name"], output["datatype"]) for output in listed] == [
        (output["name"], output["datatype"]) for output in answer["outputs"]
    ]


async def test_data_may_be_nested_as_its_shape_and_null_stands_for_nothing(
    client: httpx.AsyncClient, jpeg: bytes
) -> None:
    flat = encoded(jpeg)
    nested = {**flat, "shape": [1, 1], "data": [[element] for element in flat["data"]], "parameters": None}
    marked = {**flat, "parameters": {"content_type": "base64"}}
    answers = [
        (await client.post(INFER, json={"id": None, "inputs": [given], "outputs": None, "parameters": None})).json()
        for given in (flat, nested, marked)
    ]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["outputs"][0]["shape"] == [1, 4]


async def test_a_whole_number_is_an_id_and_no_outputs_are_all(client: httpx.AsyncClient, jpeg: bytes) -> None:
    plain = (await client.post(INFER, json={"id": "18446744073709551615", "inputs": [encoded(jpeg)]})).json()
    asked = {"id": 2**64 - 1, "inputs": [encoded(jpeg)], "outputs": []}
    assert (await client.post(INFER, json=asked)).json() == plain


async def test_requests_are_counted_by_their_route(fresh: httpx.AsyncClient, jpeg: bytes) -> None:
    for path in (INFER, "/v2/models/tiny/versions/1/infer"):
        assert (await fresh.post(path, **binary(jpeg))).status_code == 200
    metrics = (await fresh.get("/metrics")).text
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        assert f'lowfirst_requests_total{{code="200",route="{path}"}} 1.0' in metrics


async def test_a_raw_binary_request_is_one_image(client: httpx.AsyncClient, jpeg: bytes) -> None:
    raw = await client.post(INFER, content=jpeg, headers={LENGTH: "0"})
    same = json.dumps({"inputs": [encoded(jpeg)], "parameters": {"binary_data_output": True}})
    assert raw.content == (await client.post(INFER, content=same)).content
    head = int(raw.headers[LENGTH])
    sizes = [output["parameters"]["binary_data_size"] for output in json.loads(raw.content[:head])["outputs"]]
    assert len(raw.content) == head + sum(sizes)
    assert raw.headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize("given", [{}, {"parameters": {"binary_data_output": True}}])
async def test_an_output_says_by_itself_where_it_is_wanted(
    client: httpx.AsyncClient, jpeg: bytes, given: dict[str, Any]
) -> None:
    wanted = [
        {"name": "probabilities", "parameters": {"binary_data": True}},
        {"name": "label", "parameters": {"binary_data": False}},
    ]
    response = await client.post(INFER, json={"inputs": [encoded(jpeg)], "outputs": wanted, **given})
    head = int(response.headers[LENGTH])
    probabilities, label = json.loads(response.content[:head])["outputs"]
    assert (probabilities["parameters"], len(label["data"])) == ({"binary_data_size": 16}, 1)
    assert sum(struct.unpack("<4f", response.content[head:])) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"inputs": []}, 422, "inputs is []"),
        ({"inputs": [{}]}, 422, "inputs.0.name is missing"),
        ({"inputs": [{}, {}]}, 422, "inputs is "),
        ({"outputs": [{"name": "label"}] * 9}, 422, "outputs is "),
        ({"model": "tiny"}, 422, "model is 'tiny'"),
        ({"id": -5}, 422, "id is -5"),
        ({"id": True}, 422, "id is True"),
        ({"id": 5.5}, 422, "id is 5.5"),
        ({"parameters": {"treshold": 0.5}}, 422, "parameters.treshold is 0.5"),
        ({"parameters": {"threshold": "0.5"}}, 422, "parameters.threshold is '0.5'"),
        ({"parameters": {"deadline_ms": 0}}, 422, "parameters.deadline_ms is 0"),
        ({"parameters": {"deadline_ms": 5, "timeout": 5}}, 422, "parameters.timeout is 5; it must be absent"),
        ({"outputs": [{"name": "label", "parameters": {"classification": 1}}]}, 422, "outputs.0.name is 'label'"),
        (
            {"outputs": [{"name": "probabilities", "parameters": {"classification": 0}}]},
            422,
            "outputs.0.parameters.classification is 0",
        ),
    ],
)
async def test_a_wrong_field_is_told_with_value_and_bound(
    client: httpx.AsyncClient, jpeg: bytes, change: dict[str, Any], status: int, words: str
) -> None:
    response = await client.post(INFER, json={"inputs": [encoded(jpeg)], **change})
    assert error_of(response, status).startswith(words)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"name": "pixels"}, 422, "inputs.0.name is 'pixels'"),
        ({"datatype": "FP32"}, 422, "inputs.0.datatype is 'FP32'"),
        ({"shape": [2]}, 422, "inputs.0.shape is [2]; it must be [1]"),
        ({"shape": [0]}, 422, "inputs.0.shape.0 is 0"),
        ({"shape": [65]}, 422, "inputs.0.shape is [65]; it must be [N] or [N, 1] with N from 1 to 64"),
        ({"shape": [1, 2]}, 422, "inputs.0.shape is [1, 2]"),
        ({"shape": [1, 1, 1]}, 422, "inputs.0.shape is [1, 1, 1]"),
        ({"shape": ["1"]}, 422, "inputs.0.shape.0 is '1'"),
        ({"data": None}, 422, "inputs.0.data is null"),
        ({"data": []}, 422, "inputs.0.shape is [1]; it must be [0]"),
        ({"data": [5]}, 422, "inputs.0.data.0 is 5"),
        ({"data": [[["eA=="]]]}, 422, "inputs.0.data.0 is "),
        ({"data": ["no base64!"]}, 400, "inputs.0.data.0 is not base64"),
        ({"data": ["é"]}, 400, "inputs.0.data.0 is not base64"),
        ({"data": [""]}, 400, "image 0: image has 0 bytes"),
        ({"data": ["eA=="]}, 415, "image 0: "),
        (
            {"parameters": {"binary_data_size": 4}},
            422,
            "inputs.0.parameters.binary_data_size is 4; it must be absent",
        ),
        ({"parameters": {"content_type": "str"}}, 422, "inputs.0.parameters.content_type is 'str'"),
        ({"parameters": {"shared_memory_region": "x"}}, 422, "inputs.0.parameters.shared_memory_region is 'x'"),
    ],
)
async def test_a_wrong_tensor_is_told_with_value_and_bound(
    client: httpx.AsyncClient, jpeg: bytes, change: dict[str, Any], status: int, words: str
) -> None:
    response = await client.post(INFER, json={"inputs": [{**encoded(jpeg), **change}]})
    assert error_of(response, status).startswith(words)


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        (binary(b"xyz", size=3), 400, "inputs.0.parameters.binary_data_size is 3; 7 bytes follow the JSON"),
        (binary(b"xyz", size=8), 400, "inputs.0.parameters.binary_data_size is 8; 7 bytes follow the JSON"),
        (binary(b"xyz", size=-1), 422, "inputs.0.parameters.binary_data_size is -1"),
        (binary(b"xyz", shape=[2]), 422, "inputs.0.shape is [2]; it must be [1]"),
        (binary(b"xyz", data=["eA=="]), 422, "inputs.0.parameters.binary_data_size is 7; it must be absent"),
        (binary(*[b""] * 80, shape=[64]), 422, "inputs.0.shape is [64]; it must be [65]"),
        ({"content": b"{", "headers": {LENGTH: "2"}}, 400, f"{LENGTH} is '2'; it must be a number up to 1"),
        ({"content": b"{", "headers": {LENGTH: "-1"}}, 400, f"{LENGTH} is '-1'"),
        ({"content": b"{", "headers": {LENGTH: "many"}}, 400, f"{LENGTH} is 'many'"),
        ({"content": b"", "headers": {LENGTH: "0"}}, 400, "image 0: image has 0 bytes"),
        ({"content": b"no image", "headers": {LENGTH: "0"}}, 415, "image 0: "),
        ({"content": b""}, 400, ""),
        ({"content": b"{"}, 400, ""),
        ({"content": b"\xff\xd8\xff"}, 400, ""),
        ({"content": b"[]"}, 422, ""),
        ({"content": b"[" * 10_000}, 400, ""),
        (
            {"content": b"[" + b"0," * 1000 + b"0]"},
            422,
            "values is 'more than 384'; it must be at most 384 in the JSON",
        ),
    ],
)
async def test_a_malformed_body_is_told_and_the_next_is_served(
    client: httpx.AsyncClient, jpeg: bytes, given: dict[str, Any], status: int, words: str
) -> None:
    assert error_of(await client.post(INFER, **given), status).startswith(words)
    assert (await client.post(INFER, **binary(jpeg))).status_code == 200


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x01\x00", "element 0 of inputs.0 needs 4 bytes; 2 are left"),
        (b"\x04\x00\x00\x00abc", "element 0 of inputs.0 needs 4 bytes; 3 are left"),
        (b"\xff\xff\xff\xffabc", "element 0 of inputs.0 needs 4294967295 bytes; 3 are left"),
        (b"\x01\x00\x00\x00ab", "element 1 of inputs.0 needs 4 bytes; 1 are left"),
    ],
)
async def test_an_element_cut_short_is_told(client: httpx.AsyncClient, data: bytes, words: str) -> None:
    given = binary(b"x" * (len(data) - 4)) if len(data) >= 4 else binary(size=len(data), shape=[1])
    head = given["content"][: int(given["headers"][LENGTH])]
    response = await client.post(INFER, content=head + data, headers=given["headers"])
    assert error_of(response, 400) == words


async def test_bytes_that_no_input_announces_are_refused(client: httpx.AsyncClient, jpeg: bytes) -> None:
    head = json.dumps({"inputs": [encoded(jpeg)]}).encode()
    response = await client.post(INFER, content=head + b"more", headers={LENGTH: str(len(head))})
    assert "4 bytes follow the JSON" in error_of(response, 400)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v2/nowhere", 404, "Not Found"),
        ("GET", "/v2/models/huge", 404, "model is 'huge'; served: tiny/1"),
        ("GET", "/v2/models/tiny/versions/2", 404, "version of tiny is '2'; 1 is served"),
        ("GET", "/v2/models/tiny/versions/one/ready", 404, "version of tiny is 'one'"),
        ("GET", INFER, 405, "Method Not Allowed"),
        ("POST", "/v2/models/huge/infer", 404, "model is 'huge'"),
        ("POST", "/v2/models/tiny/versions/2/infer", 404, "version of tiny is '2'"),
    ],
)
async def test_what_is_not_there_is_told_before_a_body_is_read(
    client: httpx.AsyncClient, method: str, path: str, status: int, words: str
) -> None:
    content = unread() if method == "POST" else None
    assert error_of(await client.request(method, path, content=content), status).startswith(words)


async def test_other_routes_keep_their_shape_of_errors(client: httpx.AsyncClient) -> None:
    assert "code" in (await client.get("/v20")).json()["error"]


async def test_one_bad_image_fails_its_request_and_its_neighbours_leave(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    async with connect(make_app(max_images_in_flight=3, max_image_bytes=len(jpeg))) as client:
        assert error_of(await client.post(INFER, **binary(jpeg, jpeg + b"x", jpeg)), 413).startswith("image 1: ")
        assert (await client.get("/stats")).json()["queue"]["images_in_flight"] == 0
        assert (await client.post(INFER, **binary(jpeg, jpeg, jpeg))).status_code == 200
        words = error_of(await client.post(INFER, **binary(jpeg, jpeg, jpeg, jpeg)), 422)
        assert words == "inputs.0.shape is [4]; it must be [N] or [N, 1] with N from 1 to 3"


async def test_a_body_beyond_the_limit_is_refused_as_soon_as_that_is_known(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    async with connect(make_app(max_batch_bytes=10_000)) as client:
        announced = await client.post(INFER, content=unread(), headers={"Content-Length": "10001"})
        assert error_of(announced, 413) == "the body has 10001 bytes; the limit is 10000"
        assert (await client.post(INFER, **binary(jpeg))).status_code == 200


async def test_a_full_server_turns_away_before_it_reads_the_body(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    app = make_app(max_images_in_flight=1)
    async with connect(app) as client:
        with app.state.parts.admission.admit(images=1):
            response = await client.post(INFER, content=unread())
            assert "the limit is 1" in error_of(response, 429)
            assert int(response.headers["Retry-After"]) >= 1
        assert (await client.post(INFER, content=jpeg, headers={LENGTH: "0"})).status_code == 200


async def test_a_server_that_is_not_ready_says_why(make_app: Callable[..., FastAPI], jpeg: bytes) -> None:
    app = make_app()  # never started
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        for path in ("/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/versions/1/ready"):
            assert error_of(await client.get(path), 503) == "not ready: the model is being loaded"
        assert "not ready" in error_of(await client.post(INFER, **binary(jpeg)), 503)


async def test_a_client_that_leaves_frees_its_places(
    make_app: Callable[..., FastAPI], connect: Callable[..., Any], jpeg: bytes
) -> None:
    app = make_app(max_images_in_flight=2)
    given = binary(jpeg, jpeg)
    messages: list[Message] = [
        {"type": "http.request", "body": given["content"], "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        """Nobody reads it."""

    scope = {"type": "http", "method": "POST", "path": INFER, "query_string": b"", "headers": [
        (LENGTH.lower().encode(), given["headers"][LENGTH].encode())
    ]}  # fmt: skip
    async with connect(app) as client:
        await app(scope, receive, send)
        assert (await client.get("/stats")).json()["queue"]["images_in_flight"] == 0
        assert (await client.post(INFER, **given)).status_code == 200
