"""``LOWFIRST_MODEL_KEY`` in a real server: at its start, and when it is asked for another model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from service.signing import sign
from tests.conftest import need
from tests.signing_keys import write_keys

Serve = Callable[..., tuple[subprocess.Popen[str], httpx.Client]]
TIMEOUT = 100


def test_only_what_is_signed_is_served(
    serve: Serve, environment: dict[str, str], two_versions: Path, jpeg: bytes, tmp_path: Path
) -> None:
    need(find_spec("model_signing") is not None, "model-signing", "pip install '.[signing]'")
    store = Path(shutil.copytree(two_versions, tmp_path / "store"))
    private, public = write_keys(tmp_path, "key", ec.generate_private_key(ec.SECP256R1()))
    sign(store / "tiny" / "1", private)
    sign(store / "other" / "1", private)
    refused = [
        start_with(environment, LOWFIRST_MODEL_STORE=str(store), LOWFIRST_MODEL_KEY=str(public), **given)
        for given in ({"LOWFIRST_MODEL": "broken"}, {"LOWFIRST_MODEL": "broken", "LOWFIRST_PROCESSES": "2"})
    ]
    _, client = serve(model_store=str(store), model="tiny/1", model_key=str(public))

    def switch(reference: str) -> httpx.Response:
        return client.patch("/config/model", json={"model": reference})

    unsigned = switch("tiny/2")
    assert unsigned.status_code == 422
    message = unsigned.json()["error"]["message"]
    assert message.startswith("model is 'tiny/2'; it must be one that can be served: tiny/2 has no model.sig")
    assert switch("other/1").status_code == 200
    (store / "tiny" / "1" / "card.txt").write_text("one file more")
    altered = switch("tiny/1")
    assert altered.status_code == 422
    assert altered.json()["error"]["message"].endswith("key.pub: Extra files found in model 1: card.txt")
    sign(store / "tiny" / "2", private)
    assert switch("tiny/2").status_code == 200
    answer = client.post("/classify", content=jpeg, headers={"Content-Type": "image/jpeg"})
    assert answer.json()["model"] == {"name": "tiny", "version": 2}
    for process in refused:
        _, told = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, len(told.splitlines())) == (1, 1), told
        assert "broken/1 has no model.sig, which LOWFIRST_MODEL_KEY requires" in told


def start_with(environment: dict[str, str], **settings: str) -> subprocess.Popen[str]:
    """A server that cannot come up."""
    command = [sys.executable, "-m", "service.cli", "serve"]
    return subprocess.Popen(
        command, env={**environment, "LOWFIRST_LOG_LEVEL": "error", **settings}, stderr=subprocess.PIPE, text=True
    )
