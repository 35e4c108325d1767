"""``lowfirst deploy`` where it cannot: one line each. Where it can: tests/e2e/test_cluster.py."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.cluster.deploy import ANY_CALL

Lowfirst = Callable[..., Any]


@pytest.fixture(autouse=True)
def without_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's Ray has kept."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def refusal(done: Any) -> str:
    """The one line of a command that failed as it should."""
    assert (done.status, done.out) == (1, "")
    (line,) = done.err.splitlines()
    return str(line)


@pytest.mark.parametrize("missing", ["ray", "ray.serve.exceptions"])  # `pip install ray` brings no Ray Serve
def test_without_ray_it_says_what_to_install(lowfirst: Lowfirst, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delitem(sys.modules, "service.cluster.deploy", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    assert refusal(lowfirst("deploy")) == ("error: `lowfirst deploy` needs Ray: pip install '.[ray]'")


def test_several_replicas_without_redis(lowfirst: Lowfirst) -> None:
    for many in (("--replicas", "2"), ("--max-replicas", "2")):
        assert refusal(lowfirst("deploy", *many)) == (
            "error: LOWFIRST_REDIS_URL is unset; it must be set for 2 replicas: they share their config through it"
        )


def test_no_cluster_at_the_address(lowfirst: Lowfirst) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for each in (address, f"ray://{address}"):
        told = refusal(lowfirst("deploy", "--address", each))
        assert told.startswith(
            f"error: address is '{each}'; it must be auto, host:port or ray://host:port of a running"
        )
        assert told.endswith("(Connection refused)")


def test_no_cluster_at_the_address_of_the_environment(lowfirst: Lowfirst, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    told = refusal(lowfirst("deploy"))
    assert told.startswith("error: address is '127.0.0.1:1'; it must be")
    assert told.endswith("(Connection refused)")


@pytest.mark.parametrize("noted", ["127.0.0.1:1", ""])
def test_cluster_of_this_machine_that_ended(
    lowfirst: Lowfirst, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, noted: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # another test's cluster
    if noted:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(noted)
    told = refusal(lowfirst("deploy"))
    assert told.startswith(f"error: address is '{noted or 'auto'}'; it must be auto, host:port or ray://host:port of a")
    assert told.endswith("(Connection refused)" if noted else "(none runs on this machine)")


def test_something_else_at_the_address(lowfirst: Lowfirst) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert refusal(lowfirst("deploy", "--address", address)).endswith("(no Ray cluster listens there)")


def test_cluster_that_asks_for_another_token(lowfirst: Lowfirst) -> None:
    service, call = ANY_CALL.strip("/").split("/")
    refuse = grpc.unary_unary_rpc_method_handler(lambda _, call: call.abort(grpc.StatusCode.UNAUTHENTICATED, ""))
    handler = grpc.method_handlers_generic_handler(service, {call: refuse})
    server = grpc.server(ThreadPoolExecutor(1), handlers=[handler])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        told = refusal(lowfirst("deploy", "--address", address))
    finally:
        server.stop(None).wait()
    assert told.endswith("(it needs the token it was started with, in RAY_AUTH_TOKEN or ~/.ray/auth_token)")


@pytest.mark.parametrize("address", ["nonsense:port", "a:b:c", ""])
def test_an_address_that_is_none(lowfirst: Lowfirst, address: str) -> None:
    assert refusal(lowfirst("deploy", "--address", address)).startswith(f"error: address is '{address}'; it must be")


@pytest.mark.parametrize(
    ("option", "value", "bound"),
    [
        ("replicas", "0", "greater than or equal to 1"),
        ("cpus_per_replica", "2.5", "at most 1, or a whole number"),
        ("min_replicas", "2", "at most max_replicas, which is unset"),
    ],
)
def test_option_out_of_bounds(lowfirst: Lowfirst, option: str, value: str, bound: str) -> None:
    told = refusal(lowfirst("deploy", f"--{option.replace('_', '-')}", value))
    assert told.startswith(f"error: {option} is {value}; it must be {bound}")
