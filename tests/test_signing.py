"""A server with LOWFIRST_MODEL_KEY loads what that key's owner signed, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from service.cli import app as cli
from service.cli.console import model_folder
from service.errors import BrokenModel, InvalidOption
from service.signing import SIGNATURE, sign, verify
from tests.conftest import need
from tests.signing_keys import write_keys


@pytest.fixture(autouse=True)
def _needs_model_signing() -> None:
    need(find_spec("model_signing") is not None, "model-signing", "pip install '.[signing]'")


@pytest.fixture
def folder(tiny_store: Path, tmp_path: Path) -> Path:
    """``tiny/1`` in a store that a test may spoil."""
    return Path(shutil.copytree(tiny_store, tmp_path / "store")) / "tiny" / "1"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key."""
    return write_keys(tmp_path, "key", ec.generate_private_key(ec.SECP256R1()))


def test_a_signed_model_verifies_wherever_its_folder_is_moved(folder: Path, keys: tuple[Path, Path]) -> None:
    sign(folder, keys[0])
    verify(folder, keys[1])
    moved = folder.parents[2] / "elsewhere" / "tiny" / "1"
    shutil.copytree(folder, moved)
    verify(moved, keys[1])
    sign(moved, keys[0])  # again, over the old signature
    verify(moved, keys[1])


def append(path: Path) -> None:
    """Change a file by one byte."""
    path.write_bytes(path.read_bytes() + b"\n")


def link(path: Path) -> None:
    """Put a symbolic link in the place of a file, to the same bytes."""
    path.rename(path.parents[1] / path.name)
    path.symlink_to(path.parents[1] / path.name)


ALTERATIONS: dict[str, Callable[[Path], object]] = {
    "Hash mismatch for weights.safetensors": lambda folder: append(folder / "weights.safetensors"),
    "Hash mismatch for model.json": lambda folder: append(folder / "model.json"),
    "more.txt": lambda folder: (folder / "more.txt").write_text("more"),
    "Missing files in model 1: model.json": lambda folder: (folder / "model.json").unlink(),
    "model.json because it is a symlink": lambda folder: link(folder / "model.json"),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_what_was_changed_since_is_refused(alteration: str, folder: Path, keys: tuple[Path, Path]) -> None:
    sign(folder, keys[0])
    ALTERATIONS[alteration](folder)
    with pytest.raises(
        BrokenModel, match=r"^tiny/1 does not match the signature by the owner of .*key\.pub: [\w .:/-]+$"
    ) as caught:
        verify(folder, keys[1])
    assert alteration in caught.value.message


@pytest.mark.parametrize("content", ["", "{}", "null", "signed, trust me"])
def test_a_signature_that_is_none_is_refused(content: str, folder: Path, keys: tuple[Path, Path]) -> None:
    (folder / SIGNATURE).write_text(content)
    with pytest.raises(BrokenModel, match=r": model\.sig is not a valid signature \(\w+\)$"):
        verify(folder, keys[1])


def test_a_forged_payload_under_an_honest_signature_is_refused(folder: Path, keys: tuple[Path, Path]) -> None:
    other = shutil.copytree(folder, folder.parent / "2")
    append(other / "weights.safetensors")
    sign(folder, keys[0])
    sign(other, keys[0])
    honest, forged = (json.loads((each / SIGNATURE).read_text()) for each in (folder, other))
    forged["dsseEnvelope"]["signatures"] = honest["dsseEnvelope"]["signatures"]
    (other / SIGNATURE).write_text(json.dumps(forged))
    with pytest.raises(BrokenModel, match="tiny/2 does not match"):
        verify(other, keys[1])


def test_unsigned_or_signed_by_another_is_refused(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BrokenModel, match=r"^tiny/1 has no model\.sig, which LOWFIRST_MODEL_KEY requires$"):
        verify(folder, keys[1])
    sign(folder, write_keys(tmp_path, "other", ec.generate_private_key(ec.SECP384R1()))[0])
    with pytest.raises(BrokenModel, match=r": another key signed it$"):
        verify(folder, keys[1])


def test_a_key_that_cannot_be_used_is_named(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    rsa_keys = write_keys(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    (tmp_path / "text").write_text("no key")
    for public in (tmp_path / "nowhere", tmp_path, tmp_path / "text", keys[0], rsa_keys[1]):
        with pytest.raises(InvalidOption, match=rf"^LOWFIRST_MODEL_KEY is '{public}'; it must be a PEM file"):
            verify(folder, public)
    for private in (tmp_path / "nowhere", tmp_path / "text", keys[1], rsa_keys[0]):
        with pytest.raises(InvalidOption, match=rf"^key is '{private}'; it must be a PEM file"):
            sign(folder, private)


def test_a_folder_that_cannot_be_signed_is_named(folder: Path, keys: tuple[Path, Path]) -> None:
    (folder / SIGNATURE).mkdir()
    with pytest.raises(BrokenModel, match=rf"^{folder} cannot be signed: Is a directory$"):
        sign(folder, keys[0])
    (folder / SIGNATURE).rmdir()
    link(folder / "weights.safetensors")
    with pytest.raises(
        BrokenModel, match=r"cannot be signed: Cannot use .*weights\.safetensors.? because it is a symlink$"
    ):
        sign(folder, keys[0])


def test_what_the_package_signs_by_its_own_command_is_served(folder: Path, keys: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "model_signing", "sign", "key", str(folder)]
    command += ["--private_key", str(keys[0]), "--signature", str(folder / SIGNATURE)]
    subprocess.run(command, check=True, capture_output=True)
    verify(folder, keys[1])


def test_commands_refuse_an_unsigned_model_of_the_store_and_sign_makes_it_good(
    folder: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWFIRST_MODEL_STORE", str(folder.parents[1]))
    monkeypatch.setenv("LOWFIRST_MODEL_KEY", str(keys[1]))
    for reference in ("tiny", str(folder)):
        with pytest.raises(BrokenModel, match="has no model"):
            model_folder(reference)
    run = shutil.copytree(folder, folder.parents[2] / "run")
    assert model_folder(str(run)) == run  # the user's own work, not in the store
    cli(["sign", "tiny", "--key", str(keys[0])], standalone_mode=False)
    assert model_folder("tiny/1") == folder
