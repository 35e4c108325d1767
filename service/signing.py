"""Signatures of model folders, in the OpenSSF Model Signing format (``model.sig``); ``model-signing`` does the work.

Imported only where ``LOWFIRST_MODEL_KEY`` or ``lowfirst sign`` asks for it: the ``signing`` extra brings the package.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import BrokenModel, InvalidOption

if TYPE_CHECKING:
    from model_signing.signing import Config as Signer
    from model_signing.verifying import Config as Verifier

SIGNATURE = "model.sig"
KEY = "LOWFIRST_MODEL_KEY"
INSTALL = "pip install '.[signing]'"


def verify(folder: Path, public_key: Path) -> None:
    """Check every file of a model folder against its ``model.sig``. A file too many is an error too.

    Args:
        public_key: PEM file with an elliptic-curve public key (P-256, P-384 or P-521).

    Raises:
        BrokenModel: no signature, one by another key, or a file that was added, removed or changed since.
        InvalidOption: ``public_key`` cannot be read, or ``model-signing`` is not installed.
    """
    verifier = _verifier(public_key)
    title = f"{folder.parent.name}/{folder.name}"
    if not (folder / SIGNATURE).is_file():
        raise BrokenModel(f"{title} has no {SIGNATURE}, which {KEY} requires", field="model", value=title)
    try:
        verifier.verify(folder, folder / SIGNATURE)
    except Exception as error:  # whatever goes wrong, it is not verified
        message = f"{title} does not match the signature by the owner of {public_key}: {_mismatch(error)}"
        raise BrokenModel(message, field="model", value=title) from error


def sign(folder: Path, private_key: Path) -> Path:
    """Sign every file of a model folder.

    Args:
        private_key: PEM file with an elliptic-curve private key (P-256, P-384 or P-521), not encrypted.

    Returns:
        The signature's path, ``model.sig`` in the folder.

    Raises:
        InvalidOption: ``private_key`` cannot be read, or ``model-signing`` is not installed.
        BrokenModel: a symbolic link in the folder, or a folder that cannot be written.
    """
    signer = _signer(private_key)
    path = folder / SIGNATURE
    try:
        signer.sign(folder, path)
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{folder} cannot be signed: {_reason(error)}", field="model", value=str(folder)) from error
    return path


def _verifier(public_key: Path) -> Verifier:
    try:
        from model_signing.verifying import Config
    except ModuleNotFoundError as error:
        raise InvalidOption(KEY, str(public_key), f"unset without model-signing: {INSTALL}") from error
    try:
        return Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, AttributeError) as error:  # AttributeError: a key, but not an elliptic-curve one
        bound = f"a PEM file with an elliptic-curve public key ({_reason(error)})"
        raise InvalidOption(KEY, str(public_key), bound) from error


def _signer(private_key: Path) -> Signer:
    try:
        from model_signing.hashing import Config as Hashing
        from model_signing.signing import Config
    except ModuleNotFoundError as error:
        raise InvalidOption("key", str(private_key), f"absent without model-signing: {INSTALL}") from error
    try:
        signer = Config().use_elliptic_key_signer(private_key=private_key)
    except (OSError, ValueError, TypeError, AttributeError) as error:  # TypeError: it is encrypted
        bound = f"a PEM file with an elliptic-curve private key, not encrypted ({_reason(error)})"
        raise InvalidOption("key", str(private_key), bound) from error
    return signer.set_hashing_config(Hashing().set_ignored_paths(paths=[SIGNATURE]))


def _mismatch(error: Exception) -> str:
    """What ``model-signing`` found, in one line without digests."""
    text = " ".join(str(error).split())
    if text.startswith("Key mismatch"):
        return "another key signed it"
    if type(error) is ValueError:  # its own; those below it are of its parsers
        return re.sub(r"[\[\]'\"\\]", "", re.split(": Expected|[.] ", text)[0].removeprefix("Signature mismatch: "))
    return f"{SIGNATURE} is not a valid signature ({type(error).__name__})"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()).partition(". ")[0]
