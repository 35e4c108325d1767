"""The Open Inference Protocol over real sockets, spoken by Triton's published client."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

Server = tuple[subprocess.Popen[str], httpx.Client]

ROOT = Path(__file__).parent.parent.parent
RAW = {"Content-Type": "image/jpeg"}
OUTPUTS = {"probabilities", "label", "exit", "reason", "confidence", "threshold", "mmacs", "degraded"}


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[InferenceServerClient]:
    """A client of the server all tests share."""
    address = server[1].base_url
    client = InferenceServerClient(f"{address.host}:{address.port}")
    yield client
    client.close()


@pytest.fixture(scope="module")
def photographs(make_jpeg: Callable[[int], bytes]) -> list[bytes]:
    """Several, some of which exit."""
    return [make_jpeg(seed) for seed in range(6)]


def tensor(images: list[bytes], *, binary: bool = True, columns: tuple[int, ...] = ()) -> InferInput:
    """The images as the input of a request."""
    elements = images if binary else [base64.b64encode(image) for image in images]
    array = np.array(elements, dtype=np.object_).reshape(len(images), *columns)
    return InferInput("image", list(array.shape), "BYTES").set_data_from_numpy(array, binary_data=binary)


def alone(server: Server, image: bytes, **query: Any) -> dict[str, Any]:
    """What ``POST /classify`` answers."""
    answer: dict[str, Any] = (
        server[1].post("/classify", content=image, headers=RAW, params={"top_k": 4, **query}).json()
    )
    return answer


def texts(result: InferResult, name: str) -> list[str]:
    """An output of BYTES, from binary data or from JSON."""
    return [value.decode() if isinstance(value, bytes) else value for value in result.as_numpy(name).ravel()]


def check_equal(result: InferResult, answers: list[dict[str, Any]]) -> None:
    """The result says what ``POST /classify`` says."""
    expected = [[by_index["score"] for by_index in sorted(a["top_k"], key=lambda r: r["index"])] for a in answers]
    assert result.as_numpy("probabilities").dtype == np.float32
    assert result.as_numpy("probabilities") == pytest.approx(np.array(expected), rel=1e-4)
    assert result.as_numpy("confidence") == pytest.approx([answer["confidence"] for answer in answers], rel=1e-4)
    for name in ("label", "exit", "reason"):
        assert texts(result, name) == [answer[name] for answer in answers]
    for name in ("threshold", "mmacs", "degraded"):
        assert result.as_numpy(name).tolist() == [answer[name] for answer in answers]


def test_config_and_statistics_are_as_tritons_tools_ask_for_them(
    triton: InferenceServerClient, photographs: list[bytes]
) -> None:
    config = triton.get_model_config("tiny", "1")
    assert (config["name"], config["max_batch_size"], config["input"][0]["data_type"]) == ("tiny", 0, "TYPE_STRING")
    before = triton.get_inference_statistics("tiny")["model_stats"][0]
    triton.infer("tiny", [tensor(photographs)], request_id="5")
    (after,) = triton.get_inference_statistics()["model_stats"]
    assert after["inference_count"] - before["inference_count"] == len(photographs)
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]


def test_server_and_model_are_live_and_ready(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("tiny")
    assert triton.is_model_ready("tiny", "1")
    assert not triton.is_model_ready("tiny", "2")
    assert not triton.is_model_ready("huge")


def test_metadata_tell_the_extensions_and_the_tensors(triton: InferenceServerClient) -> None:
    server = triton.get_server_metadata()
    assert server["name"] == "lowfirst"
    assert {"binary_tensor_data", "classification"} <= set(server["extensions"])
    model = triton.get_model_metadata("tiny")
    assert model == triton.get_model_metadata("tiny", "1")
    assert (model["name"], model["versions"]) == ("tiny", ["1"])
    assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert model["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 4]}
    assert {output["name"] for output in model["outputs"]} == OUTPUTS


@pytest.mark.parametrize("binary", [True, False])
def test_an_image_gets_the_answer_that_classify_gives(
    server: Server, triton: InferenceServerClient, jpeg: bytes, binary: bool
) -> None:
    result = triton.infer("tiny", [tensor([jpeg], binary=binary)], request_id="seven", model_version="1")
    answer = alone(server, jpeg)
    check_equal(result, [answer])
    body = result.get_response()
    assert (body["id"], body["model_name"], body["model_version"]) == ("seven", "tiny", "1")
    named = ("exit", "confidence", "threshold", "mmacs", "degraded", "config_version")
    assert body["parameters"] == pytest.approx({name: answer[name] for name in named})


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("columns", [(), (1,)])
def test_a_batch_is_answered_in_order(
    server: Server, triton: InferenceServerClient, photographs: list[bytes], binary: bool, columns: tuple[int, ...]
) -> None:
    answers = [alone(server, image) for image in photographs]
    assert {answer["exit"] for answer in answers} == {"low", "high"}
    result = triton.infer("tiny", [tensor(photographs, binary=binary, columns=columns)])
    check_equal(result, answers)
    parameters = result.get_response()["parameters"]
    assert parameters["exit"] == "high"
    assert parameters["mmacs"] == pytest.approx(sum(answer["mmacs"] for answer in answers))


@pytest.mark.parametrize("binary", [True, False])
def test_wanted_outputs_alone_are_given_as_they_are_wanted(
    server: Server, triton: InferenceServerClient, jpeg: bytes, binary: bool
) -> None:
    wanted = [InferRequestedOutput(name, binary_data=binary) for name in ("degraded", "label")]
    result = triton.infer("tiny", [tensor([jpeg])], outputs=wanted)
    given = result.get_response()["outputs"]
    assert [output["name"] for output in given] == ["degraded", "label"]
    assert all(("data" in output) is not binary for output in given)
    assert result.as_numpy("degraded").tolist() == [False]
    assert texts(result, "label") == [alone(server, jpeg)["label"]]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("count", "given"), [(1, 1), (3, 3), (1000, 4)])
def test_a_classification_ranks_the_labels(
    server: Server, triton: InferenceServerClient, photographs: list[bytes], binary: bool, count: int, given: int
) -> None:
    wanted = InferRequestedOutput("probabilities", binary_data=binary, class_count=count)
    result = triton.infer("tiny", [tensor(photographs)], outputs=[wanted])
    assert result.as_numpy("probabilities").shape == (len(photographs), given)
    rows = np.array(texts(result, "probabilities")).reshape(len(photographs), given)
    for row, image in zip(rows, photographs, strict=True):
        for text, ranked in zip(row, alone(server, image)["top_k"], strict=False):
            score, index, label = text.split(":")
            assert (int(index), label) == (ranked["index"], ranked["label"])
            assert float(score) == pytest.approx(ranked["score"], abs=1e-4)  # batches of other sizes round otherwise


@pytest.mark.parametrize(("threshold", "exit_"), [(0, "low"), (1, "high")])
def test_a_threshold_holds_for_its_request(
    triton: InferenceServerClient, jpeg: bytes, threshold: float, exit_: str
) -> None:
    result = triton.infer("tiny", [tensor([jpeg])], parameters={"threshold": threshold})
    assert texts(result, "exit") == [exit_]
    assert result.as_numpy("threshold").tolist() == [threshold]


@pytest.mark.parametrize("deadline", [{"parameters": {"deadline_ms": 1e-6}}, {"timeout": 1}])
def test_a_deadline_already_past_is_told(triton: InferenceServerClient, jpeg: bytes, deadline: dict[str, Any]) -> None:
    with pytest.raises(InferenceServerException, match="no answer is possible in that time") as raised:
        triton.infer("tiny", [tensor([jpeg])], **deadline)
    assert raised.value.status() == "504"


@pytest.mark.parametrize("kind", ["gzip", "deflate"])
def test_a_compressed_body_is_refused_and_an_answer_comes_plain(
    triton: InferenceServerClient, jpeg: bytes, kind: str
) -> None:
    with pytest.raises(InferenceServerException, match=f"Content-Encoding is '{kind}'; it must be identity") as raised:
        triton.infer("tiny", [tensor([jpeg])], request_compression_algorithm=kind)
    assert raised.value.status() == "415"
    assert triton.infer("tiny", [tensor([jpeg])], response_compression_algorithm=kind).as_numpy("label").shape == (1,)


def test_errors_reach_the_client_in_words(triton: InferenceServerClient, jpeg: bytes) -> None:
    def refused(status: str, words: str, model: str = "tiny", version: str = "", **given: Any) -> None:
        with pytest.raises(InferenceServerException, match=words) as raised:
            triton.infer(model, **{"inputs": [tensor([jpeg])], "model_version": version, **given})
        assert raised.value.status() == status

    refused("404", "model is 'huge'; served: tiny/1", model="huge")
    refused("404", "version of tiny is '2'; 1 is served", version="2")
    refused("415", "image 1: ", inputs=[tensor([jpeg, b"no image", jpeg])])
    refused("400", "image 2: ", inputs=[tensor([jpeg, jpeg, jpeg[:300]])])
    refused("422", "N from 1 to 64", inputs=[tensor([jpeg] * 65)])
    refused("422", "outputs.0.name is 'logits'", outputs=[InferRequestedOutput("logits")])
    refused("422", "threshold is 2", parameters={"threshold": 2})
    pixels = InferInput("image", [1, 3], "UINT8").set_data_from_numpy(np.zeros((1, 3), np.uint8))
    refused("422", "inputs.0.datatype is 'UINT8'", inputs=[pixels])
    assert triton.infer("tiny", [tensor([jpeg])]).as_numpy("label").shape == (1,)


def test_the_example_of_the_documents_runs(server: Server) -> None:
    example = re.search(r"```python\n(.+?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    assert example
    address = server[1].base_url
    code = example[1].replace("localhost:8000", f"{address.host}:{address.port}")
    code = code.replace("imagenette-resnet18", "tiny")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d:\d:(ant|bee|cat|dog)", done.stdout)
