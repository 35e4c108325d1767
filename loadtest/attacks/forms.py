"""Images in every form of a body that the server reads."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence

from loadtest.attacks.clients import Request

BOUNDARY = "lowfirst-faults"
BYTES = "application/octet-stream"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


def raw(images: Sequence[bytes], _model: str) -> Request:
    return Request("/classify", images[0], BYTES)


def part(images: Sequence[bytes], _model: str) -> Request:
    return Request("/classify", _multipart(images[:1]), MULTIPART)


def base64_json(images: Sequence[bytes], _model: str) -> Request:
    return Request("/classify", json.dumps({"image": _base64(images[0])}).encode(), "application/json")


def batch(images: Sequence[bytes], _model: str) -> Request:
    return Request("/classify/batch", _multipart(images), MULTIPART)


def v2_json(images: Sequence[bytes], model: str) -> Request:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [_base64(images[0])]}
    return Request(f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode(), "application/json")


def v2_binary(images: Sequence[bytes], model: str) -> Request:
    data = b"".join(len(image).to_bytes(4, "little") + image for image in images[:1])
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    length = ("Inference-Header-Content-Length", str(len(head)))
    return Request(f"/v2/models/{model}/infer", head + data, BYTES, headers=(length,))


FORMS: dict[str, Callable[[Sequence[bytes], str], Request]] = {
    "raw": raw,
    "multipart": part,
    "JSON": base64_json,
    "batch": batch,
    "/v2 JSON": v2_json,
    "/v2 binary": v2_binary,
}


def _multipart(images: Sequence[bytes]) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'.encode()
    return b"".join(head + image + b"\r\n" for image in images) + f"--{BOUNDARY}--\r\n".encode()


def _base64(image: bytes) -> str:
    return base64.b64encode(image).decode()
