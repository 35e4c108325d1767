"""The Open Inference Protocol over gRPC, spoken by Triton's published client to real servers."""

from __future__ import annotations

import queue
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    InferResult,
    model_config_pb2,
    service_pb2,
)
from tritonclient.utils import InferenceServerException

from service.api.rpc.messages import METHODS, SERVICE
from tests.e2e.conftest import log_of
from tests.e2e.test_inference_protocol import OUTPUTS, alone
from tests.e2e.under_load import until

Server = tuple[subprocess.Popen[str], httpx.Client]
Serve = Callable[..., Server]
PROTO = (Path(__file__).parents[2] / "service/api/rpc/inference.proto").read_text()
KEY = "0123456789-api-key"


def address(process: subprocess.Popen[str]) -> str:
    """Where a server speaks gRPC."""
    (found,) = re.findall(r"listening on grpc://(\S+)", "".join(log_of(process)))
    return str(found)


@pytest.fixture(scope="module")
def both(servers: Serve) -> Server:
    """A server that speaks both."""
    return servers(grpc_port="0", max_image_bytes="10000", max_batch_images="8", max_images_in_flight="8")


@pytest.fixture(scope="module")
def triton(both: Server) -> Iterator[InferenceServerClient]:
    """A client of it."""
    with InferenceServerClient(address(both[0])) as client:
        yield client


@pytest.fixture(scope="module")
def photographs(make_jpeg: Callable[[int], bytes]) -> list[bytes]:
    """Several, some of which exit."""
    return [make_jpeg(seed) for seed in range(6)]


def tensor(images: list[bytes], *columns: int) -> InferInput:
    """The images as the input of a request."""
    array = np.array(images, dtype=np.object_).reshape(len(images), *columns)
    return InferInput("image", list(array.shape), "BYTES").set_data_from_numpy(array)


def check_equal(result: InferResult, answers: list[dict[str, Any]]) -> None:
    """The result says what ``POST /classify`` says."""
    expected = [[by_index["score"] for by_index in sorted(a["top_k"], key=lambda r: r["index"])] for a in answers]
    assert result.as_numpy("probabilities") == pytest.approx(np.array(expected), rel=1e-4)
    assert result.as_numpy("confidence") == pytest.approx([answer["confidence"] for answer in answers], rel=1e-4)
    for name in ("label", "exit", "reason"):
        assert [value.decode() for value in result.as_numpy(name)] == [answer[name] for answer in answers]
    for name in ("threshold", "mmacs", "degraded"):
        assert result.as_numpy(name).tolist() == [answer[name] for answer in answers]


def refused(call: Callable[[], Any], code: str) -> str:
    """What an error of that code says."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert caught.value.status() == f"StatusCode.{code}"
    return str(caught.value.message())


def test_server_and_model_are_live_and_ready(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("tiny")
    assert triton.is_model_ready("tiny", "1")
    assert "1 is served" in refused(lambda: triton.is_model_ready("tiny", "2"), "NOT_FOUND")
    refused(lambda: triton.is_model_ready("huge"), "NOT_FOUND")


def test_metadata_are_those_of_http(both: Server, triton: InferenceServerClient) -> None:
    server = both[1].get("/v2").json()
    told = triton.get_server_metadata()
    assert (told.name, told.version, list(told.extensions)) == tuple(server.values())
    model = both[1].get("/v2/models/tiny").json()
    metadata = triton.get_model_metadata("tiny", "1")
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("tiny", ["1"], model["platform"])
    for name in ("inputs", "outputs"):
        tensors = [(each.name, each.datatype, list(each.shape)) for each in getattr(metadata, name)]
        assert tensors == [tuple(each.values()) for each in model[name]]


def test_config_and_statistics_are_those_of_http(
    both: Server, triton: InferenceServerClient, photographs: list[bytes]
) -> None:
    for version in ("", "1"):
        told = triton.get_model_config("tiny", version, as_json=True)["config"]
        expected = both[1].get("/v2/models/tiny/config").json()
        assert expected.pop("max_batch_size") == 0  # which JSON of messages leaves out
        for tensor_ in (*expected["input"], *expected["output"]):
            tensor_["dims"] = list(map(str, tensor_["dims"]))
        assert {name: told[name] for name in expected} == expected
    (before,) = triton.get_inference_statistics("tiny", "1").model_stats
    triton.infer("tiny", [tensor(photographs)])
    (after,) = triton.get_inference_statistics().model_stats
    (http,) = both[1].get("/v2/models/stats").json()["model_stats"]
    assert after.inference_count - before.inference_count == len(photographs)
    assert (after.name, after.version, after.inference_count) == ("tiny", "1", http["inference_count"])
    assert after.inference_stats.success.ns == http["inference_stats"]["success"]["ns"]
    for ask in (triton.get_model_config, triton.get_inference_statistics):
        assert "1 is served" in refused(partial(ask, "tiny", "2"), "NOT_FOUND")


@pytest.mark.parametrize("columns", [(), (1,)])
def test_images_get_the_answers_that_classify_gives_in_order(
    both: Server, triton: InferenceServerClient, photographs: list[bytes], columns: tuple[int, ...]
) -> None:
    answers = [alone(both, image) for image in photographs]
    assert {answer["exit"] for answer in answers} == {"low", "high"}
    result = triton.infer("tiny", [tensor(photographs, *columns)], request_id="seven", model_version="1")
    check_equal(result, answers)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("seven", "tiny", "1")
    assert {output.name for output in response.outputs} == OUTPUTS
    assert response.parameters["exit"].string_param == "high"
    assert response.parameters["mmacs"].double_param == pytest.approx(sum(answer["mmacs"] for answer in answers))
    assert response.parameters["degraded"].bool_param is False
    assert response.parameters["config_version"].int64_param == answers[0]["config_version"]


def test_contents_that_are_not_raw_are_read_too(both: Server, jpeg: bytes) -> None:
    request = service_pb2.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(jpeg)
    with grpc.insecure_channel(address(both[0])) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        check_equal(InferResult(infer(request)), [alone(both, jpeg)])


def test_requested_outputs_classes_and_threshold_are_given(
    both: Server, triton: InferenceServerClient, jpeg: bytes
) -> None:
    wanted = [InferRequestedOutput("probabilities", class_count=2), InferRequestedOutput("exit")]
    for threshold, exit_ in ((0.0, "low"), (1.0, "high")):
        result = triton.infer("tiny", [tensor([jpeg])], outputs=wanted, parameters={"threshold": threshold})
        best = alone(both, jpeg, threshold=threshold)["top_k"][:2]
        rows = [value.decode().split(":") for value in result.as_numpy("probabilities")[0]]
        assert [row[1:] for row in rows] == [[str(each["index"]), each["label"]] for each in best]
        assert result.as_numpy("exit").tolist() == [exit_.encode()]
        assert result.as_numpy("label") is None


def test_bad_requests_are_invalid_arguments_that_say_what_is_wrong(triton: InferenceServerClient, jpeg: bytes) -> None:
    def infer(*inputs: InferInput, **more: Any) -> str:
        return refused(
            lambda: triton.infer(**{"model_name": "tiny", "inputs": list(inputs), **more}), "INVALID_ARGUMENT"
        )

    image = tensor([jpeg])
    pixels = InferInput("image", [1, 4], "FP32").set_data_from_numpy(np.zeros((1, 4), np.float32))
    assert "inputs.0.datatype is 'FP32'; it must be 'BYTES'" in infer(pixels)
    assert "inputs.0.name is 'picture'" in infer(InferInput("picture", [1], "BYTES").set_data_from_numpy(
        np.array([jpeg], dtype=np.object_)))  # fmt: skip
    assert infer().startswith("inputs is []")
    assert infer(image, image).startswith("inputs is ")
    assert "image 1: " in infer(tensor([jpeg, b"no image"]))
    assert "image 0: image has 20000 bytes; the limit is 10000" in infer(tensor([bytes(20_000)]))
    assert "inputs.0.shape is [9]" in infer(tensor([jpeg] * 9))
    assert "parameters.threshold is 2" in infer(image, parameters={"threshold": 2.0})
    assert "parameters.thresh" in infer(image, parameters={"thresh": 0.5})
    assert "parameters.timeout" in infer(image, parameters={"deadline_ms": 100.0}, timeout=1000)
    assert "outputs.0.name is 'logits'" in infer(image, outputs=[InferRequestedOutput("logits")])
    assert "outputs.0.name is 'label'" in infer(image, outputs=[InferRequestedOutput("label", class_count=1)])
    refused(lambda: triton.infer("huge", [image]), "NOT_FOUND")


def test_a_deadline_that_nothing_can_meet_is_exceeded(triton: InferenceServerClient, jpeg: bytes) -> None:
    told = refused(lambda: triton.infer("tiny", [tensor([jpeg])], timeout=1), "DEADLINE_EXCEEDED")
    assert "deadline_ms is 0.001; no answer is possible in that time" in told


def test_grpc_s_own_deadline_is_the_request_s(both: Server, triton: InferenceServerClient, jpeg: bytes) -> None:
    """An image that would run through both stages: a threshold that no confidence reaches."""
    dropped = re.compile(r'^lowfirst_dropped_total{point="deadline"} (\S+)$', re.MULTILINE)

    def count() -> float:
        found = dropped.search(both[1].get("/metrics").text)
        assert found
        return float(found[1])

    before = count()
    refused(lambda: triton.infer("tiny", [tensor([jpeg])], client_timeout=1e-4), "DEADLINE_EXCEEDED")
    triton.infer("tiny", [tensor([jpeg])], client_timeout=60)
    assert count() >= before


def test_more_images_than_there_is_room_for_exhaust_resources(
    triton: InferenceServerClient, photographs: list[bytes]
) -> None:
    results: queue.Queue[InferenceServerException | None] = queue.Queue()
    for _ in range(12):
        triton.async_infer("tiny", [tensor(photographs)], callback=lambda result, error: results.put(error))
    errors = [results.get(timeout=60) for _ in range(12)]
    failed = [error for error in errors if error is not None]
    assert {error.status() for error in failed} == {"StatusCode.RESOURCE_EXHAUSTED"}
    assert "the limit is 8" in str(failed[0].message())
    assert len(failed) < 12


def test_calls_are_counted_and_carry_the_request_s_id(both: Server, jpeg: bytes) -> None:
    counted = re.compile(r'^lowfirst_requests_total{code="200",route="/v2/grpc/infer"} (\S+)$', re.MULTILINE)
    found = counted.search(both[1].get("/metrics").text)
    assert found
    request = service_pb2.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(jpeg)
    with grpc.insecure_channel(address(both[0])) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        _, call = infer.with_call(request, metadata=(("x-request-id", "mine"),))
        assert dict(call.initial_metadata())["x-request-id"] == "mine"
        _, call = infer.with_call(request, metadata=(("x-request-id", "two words"),))
        assert re.fullmatch("[0-9a-f]{32}", dict(call.initial_metadata())["x-request-id"])
    again = counted.search(both[1].get("/metrics").text)
    assert again
    assert float(again[1]) == float(found[1]) + 2


def test_keys_travel_in_metadata(servers: Serve, jpeg: bytes) -> None:
    process, _ = servers(grpc_port="0", api_key=KEY)
    with InferenceServerClient(address(process)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert "a key is needed" in refused(lambda: client.get_model_metadata("tiny"), "UNAUTHENTICATED")
        for headers in ({}, {"x-api-key": "wrong"}, {"authorization": "Bearer wrong"}):
            refused(partial(client.infer, "tiny", [tensor([jpeg])], headers=headers), "UNAUTHENTICATED")
        for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
            assert client.infer("tiny", [tensor([jpeg])], headers=headers).as_numpy("label") is not None


def test_several_processes_share_the_port_and_a_server_that_stops_says_so(serve: Serve, jpeg: bytes) -> None:
    process, client = serve(grpc_port="0", processes="2", drain_delay_seconds="60")
    where = address(process)
    for _ in range(8):
        with InferenceServerClient(where, channel_args=[("grpc.use_local_subchannel_pool", 1)]) as one:
            assert one.infer("tiny", [tensor([jpeg])]).as_numpy("label") is not None
    counted = re.search(r'^lowfirst_requests_total{code="200",route="/v2/grpc/infer"} (\S+)$',
                        client.get("/metrics").text, re.MULTILINE)  # fmt: skip
    assert counted
    assert float(counted[1]) == 8
    with InferenceServerClient(where) as one:
        assert one.is_server_ready()
        process.terminate()
        until(lambda: not one.is_server_ready())
        assert one.is_server_live()
        process.terminate()
        process.wait(60)
        refused(one.is_server_live, "UNAVAILABLE")


def test_a_port_in_use_is_told_in_one_sentence(both: Server, environment: dict[str, str]) -> None:
    port = address(both[0]).rpartition(":")[2]
    for processes in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", "serve"],
            env={
                **environment,
                "LOWFIRST_GRPC_PORT": port,
                "LOWFIRST_PROCESSES": processes,
                "LOWFIRST_LOG_LEVEL": "error",
            },
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 1
        assert re.fullmatch(
            rf"error: LOWFIRST_GRPC_PORT is {port}; it must be a free port at 127.0.0.1 \(.*in use\)\n",
            done.stderr,
        )


def test_messages_are_those_of_the_published_protocol() -> None:
    """As Triton's client has them: names, numbers, types; ours are some of them."""
    for messages in METHODS.values():
        for message in (each.DESCRIPTOR for each in messages):
            theirs = _fields(getattr(service_pb2, message.name).DESCRIPTOR)
            assert _fields(message) == {key: value for key, value in theirs.items() if key in _fields(message)}
    ours = METHODS["ModelConfig"][1].DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    assert {(name, value.number) for name, value in ours.items()} <= set(model_config_pb2.DataType.items())
    for name in METHODS:
        assert f"rpc {name}(" in PROTO
    fields = {name for each in METHODS.values() for message in each for name in _fields(message.DESCRIPTOR)}
    assert {name.rpartition(".")[2] for name in fields} <= set(re.findall(r"(\w+) = \d+;", PROTO)) | {"key", "value"}


def _fields(message: Any, seen: tuple[str, ...] = ()) -> dict[str, tuple[int, int, bool]]:
    found = {}
    for field in message.fields:
        found[field.full_name] = field.number, field.type, field.is_repeated
        if field.message_type is not None and field.message_type.full_name not in seen:
            found |= _fields(field.message_type, (*seen, message.full_name))
    return found
