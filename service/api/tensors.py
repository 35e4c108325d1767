"""The tensors of the Open Inference Protocol on the wire: in JSON, or after it (Triton's binary tensor data extension).

Binary tensors are little-endian and dense; an element of ``BYTES`` is its length in four bytes, then itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from fastapi import Request, Response

from service.api import bodies
from service.api.protocol_schemas import (
    OUTPUTS,
    PROBABILITIES,
    SCALARS,
    AnswerParameters,
    BinaryData,
    Datatype,
    Element,
    InferAnswer,
    InferInput,
    InferRequest,
    OutputParameters,
    OutputTensor,
    RequestedOutput,
    RequestParameters,
)
from service.api.receiving import whole_number
from service.engine.answer import Answer
from service.errors import BadRequest, InvalidOption

JSON_LENGTH = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
LENGTH = struct.Struct("<I")
FORMATS = {"BOOL": "?", "FP32": "f", "FP64": "d", "INT64": "q"}


def read(request: Request, body: bytes, most: int) -> tuple[InferRequest, list[bytes]]:
    """The options of a request, and its encoded images, one to ``most``.

    An empty JSON is Triton's raw binary request: the rest is one image.

    Raises:
        BadRequest: lengths that do not fit the body; invalid base64.
        InvalidOption: a shape that does not fit the images; an unsupported form of an output; too many images.
        RequestValidationError: broken JSON, or a wrong field.
    """
    length = _json_length(request, body)
    if length == 0:
        return _raw_request(), [body]
    head, tail = body[:length], body[length:]
    asked = bodies.parse(InferRequest, head, bodies.MAX_JSON_VALUES + 2 * most)
    return asked, images(asked, tail, most)


def images(asked: InferRequest, tail: bytes, most: int) -> list[bytes]:
    """The encoded images of a request whose binary tensor is ``tail``. Raises as ``read``."""
    for index, output in enumerate(asked.outputs or ()):
        if output.name != PROBABILITIES and output.parameters is not None and output.parameters.classification:
            raise InvalidOption(
                f"outputs.{index}.name", output.name, f"{PROBABILITIES} to be given as a classification"
            )
    return _images(asked.inputs[0], tail, most)


def answer(asked: InferRequest, answers: list[Answer]) -> Response:
    """The response with the requested outputs; ``answers`` rank all classes.

    It names the model of the first answer. During a canary, another model with the same classes may have given others.
    """
    binary_by_default = asked.parameters is not None and asked.parameters.binary_data_output
    wanted = asked.outputs or [RequestedOutput(name=name) for name in OUTPUTS]
    outputs = [_output(output, answers, binary_by_default) for output in wanted]
    body = InferAnswer(
        model_name=answers[0].model,
        model_version=str(answers[0].version),
        id=asked.id,
        parameters=AnswerParameters.of(answers),
        outputs=[tensor for tensor, _ in outputs],
    )
    head = body.model_dump_json(exclude_none=True).encode()
    if all(data is None for _, data in outputs):
        return Response(head, media_type="application/json")
    tail = b"".join(data for _, data in outputs if data is not None)
    return Response(head + tail, media_type=BINARY, headers={JSON_LENGTH: str(len(head))})


def _json_length(request: Request, body: bytes) -> int:
    header = request.headers.get(JSON_LENGTH)
    if header is None:
        return len(body)
    length = whole_number(header)
    if length is None or length > len(body):
        raise BadRequest(
            f"{JSON_LENGTH} is {header!r}; it must be a number up to {len(body)}, the bytes of the body",
            field=JSON_LENGTH,
            value=header,
            bound=len(body),
        )
    return length


def _raw_request() -> InferRequest:
    return InferRequest(
        inputs=[InferInput(name="image", datatype="BYTES", shape=[1])],
        parameters=RequestParameters(binary_data_output=True),
    )


def _images(given: InferInput, tail: bytes, most: int) -> list[bytes]:
    count = given.shape[0]
    if not 1 <= count <= most or given.shape[1:] not in ([], [1]):
        raise InvalidOption("inputs.0.shape", given.shape, f"[N] or [N, 1] with N from 1 to {most}")
    size = given.parameters.binary_data_size if given.parameters is not None else None
    if size is None and given.data is None:
        raise InvalidOption(
            "inputs.0.data", None, "the images in base64, unless binary_data_size announces them as binary data"
        )
    if size is not None and given.data is not None:
        raise InvalidOption("inputs.0.parameters.binary_data_size", size, "absent if data is given")
    if (size or 0) != len(tail):
        raise BadRequest(
            f"inputs.0.parameters.binary_data_size is {size}; {len(tail)} bytes follow the JSON",
            field="inputs.0.parameters.binary_data_size",
            value=size,
            bound=len(tail),
        )
    images = (
        _elements(tail, most)
        if given.data is None
        else [bodies.from_base64(text, f"inputs.0.data.{i}") for i, text in enumerate(given.data)]
    )
    if len(images) != count:
        raise InvalidOption("inputs.0.shape", given.shape, f"[{len(images)}], the number of images sent")
    return images


def _elements(data: bytes, most: int) -> list[bytes]:
    """The elements of a binary tensor of BYTES; at most the first ``most + 1``."""
    elements: list[bytes] = []
    at = 0
    while at < len(data) and len(elements) <= most:
        begin = at + LENGTH.size
        if begin > len(data):
            raise _cut_short(len(elements), LENGTH.size, len(data) - at)
        (length,) = LENGTH.unpack_from(data, at)
        at = begin + length
        if at > len(data):
            raise _cut_short(len(elements), length, len(data) - begin)
        elements.append(data[begin:at])
    return elements


def _cut_short(index: int, needed: int, left: int) -> BadRequest:
    return BadRequest(
        f"element {index} of inputs.0 needs {needed} bytes; {left} are left",
        field="inputs.0",
        value=needed,
        bound=left,
    )


def _output(wanted: RequestedOutput, answers: list[Answer], binary: bool) -> tuple[OutputTensor, bytes | None]:
    """An output's entry in the JSON, and its binary data if requested."""
    parameters = wanted.parameters or OutputParameters()
    if not (binary if parameters.binary_data is None else parameters.binary_data):
        datatype, shape, values = _tensor(wanted.name, answers, parameters.classification)
        return OutputTensor(name=wanted.name, datatype=datatype, shape=shape, data=values), None
    datatype, shape, data = packed(wanted, answers)
    size = BinaryData(binary_data_size=len(data))
    return OutputTensor(name=wanted.name, datatype=datatype, shape=shape, parameters=size), data


def packed(wanted: RequestedOutput, answers: list[Answer]) -> tuple[Datatype, list[int], bytes]:
    """An output's datatype, shape and bytes."""
    parameters = wanted.parameters or OutputParameters()
    datatype, shape, values = _tensor(wanted.name, answers, parameters.classification)
    return datatype, shape, _packed(datatype, values)


def _tensor(name: str, answers: list[Answer], classification: int | None) -> tuple[Datatype, list[int], list[Element]]:
    """Datatype, shape and elements, row by row."""
    if name != PROBABILITIES:
        return SCALARS[name].datatype, [len(answers)], [SCALARS[name].of(answer) for answer in answers]
    ranked = [answer.top_k for answer in answers]
    if classification is None:
        rows = [[best.score for best in sorted(row, key=lambda best: best.index)] for row in ranked]
        return "FP32", [len(rows), len(rows[0])], [score for row in rows for score in row]
    count = min(classification, len(ranked[0]))
    labels = [f"{best.score:f}:{best.index}:{best.label}" for row in ranked for best in row[:count]]
    return "BYTES", [len(ranked), count], [*labels]


def _packed(datatype: Datatype, values: Sequence[Element]) -> bytes:
    if datatype == "BYTES":
        encoded = [str(value).encode() for value in values]
        return b"".join(LENGTH.pack(len(value)) + value for value in encoded)
    return struct.pack(f"<{len(values)}{FORMATS[datatype]}", *values)
