"""What we use of the inside of others: listed here, each in one file, and there in the version that is installed."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from service.images.torchvision_decoders import webp_decoder

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()

# Module and name -> the file that uses it, and why no public way does.
USED = {
    ("torch._C", "_jit_clear_class_registry"): "inference/runtimes/openvino.py",  # traces are kept for ever
    ("torch.jit._recursive", "concrete_type_store"): "inference/runtimes/openvino.py",  # likewise
    ("torch.jit._recursive", "ConcreteTypeStore"): "inference/runtimes/openvino.py",  # likewise
    ("uvicorn.protocols.http.httptools_impl", "STATUS_LINE"): "cli/http_protocol.py",  # bounds that uvicorn lacks
    ("uvicorn.protocols.http.httptools_impl", "HttpToolsProtocol"): "cli/http_protocol.py",  # likewise
    ("uvicorn.protocols.http.httptools_impl", "RequestResponseCycle"): "cli/http_protocol.py",  # likewise
    (
        "ray._private.authentication.authentication_token_setup",
        "maybe_enable_token_auth_if_token_available",
    ): "cluster/deploy.py",
    ("ray._private.grpc_utils", "init_grpc_channel"): "cluster/deploy.py",  # to ask a cluster before joining it
    ("ray._private.services", "get_ray_address_from_environment"): "cluster/deploy.py",  # likewise
}
BOUNDED = ("torch", "uvicorn", "openvino", "ray")  # packages whose inside is used


@pytest.mark.parametrize(("module", "name"), USED, ids=lambda value: value)
def test_private_part_is_there(module: str, name: str) -> None:
    assert hasattr(import_module(module), name), f"{module}.{name} is gone: see service/{USED[module, name]}"


@pytest.mark.parametrize(("module", "name"), USED, ids=lambda value: value)
def test_private_part_is_used_where_it_says(module: str, name: str) -> None:
    del module
    users = [path for path in (ROOT / "service").rglob("*.py") if re.search(rf"\b{name}\b", path.read_text())]
    file = next(file for (_, other), file in USED.items() if other == name)
    assert [str(path.relative_to(ROOT / "service")) for path in users] == [file]


def test_torchvisions_compiled_decoder_is_where_it_was() -> None:
    assert webp_decoder() is not None, "WebP takes twice the time: see service/images/torchvision_decoders.py"


def test_no_other_private_module_is_imported() -> None:
    modules = {module for module, _ in USED}
    for path in (ROOT / "service").rglob("*.py"):
        for module in re.findall(r"^\s*(?:from|import) ([\w.]*\._\w[\w.]*)", path.read_text(), re.MULTILINE):
            assert any(known.startswith(module) for known in modules), f"{path}: {module}"


@pytest.mark.parametrize("name", BOUNDED)
def test_package_whose_inside_is_used_has_an_upper_bound(name: str) -> None:
    stated = [Requirement(each) for each in re.findall(rf'"({name}(?:\[\w+\])?[<>=!~][^"]*)"', PYPROJECT)]
    assert stated
    assert all(any(bound.operator == "<" for bound in each.specifier) for each in stated), stated
