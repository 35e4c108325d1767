"""The model store: ``model_store/<name>/<version>/`` and the run folders that become its versions.

A model folder holds ``weights.safetensors`` and ``model.json``, which says everything else about the model.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import BrokenModel, InvalidOption, LowfirstError, NotFound
from service.model_spec import SPEC, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "weights.safetensors"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")


class ModelStore:
    """A folder of models, ``<root>/<name>/<version>/``. Names cannot lead out of it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Every model's name, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(
            path.name for path in self.root.iterdir() if NAME.fullmatch(path.name) and self.versions(path.name)
        )

    def holds(self) -> str:
        """The names as text, for messages."""
        if not self.root.is_dir():
            return f"there is no model store {self.root} (LOWFIRST_MODEL_STORE)"
        known = ", ".join(self.names())
        return f"{self.root} has {known}" if known else f"the model store {self.root} is empty"

    def versions(self, name: str) -> list[int]:
        """The versions of model ``name``, ascending; empty if there is none."""
        return sorted(version for version, folder in self._folders(name) if (folder / SPEC).is_file())

    def next_version(self, name: str) -> int:
        """The number after the highest version of model ``name``, including half-written ones."""
        return max((version for version, _ in self._folders(name)), default=0) + 1

    @contextmanager
    def new_version(self, name: str) -> Iterator[tuple[int, Path]]:
        """Write a new version of model ``name``: its number and its empty folder. A failure leaves nothing behind.

        Raises:
            InvalidOption: ``name`` is not a valid model name.
        """
        version = self.next_version(name)
        folder = self.root / name / str(version)
        folder.mkdir(parents=True)
        try:
            yield version, folder
        except BaseException:
            shutil.rmtree(folder)
            with suppress(OSError):  # other versions are there
                folder.parent.rmdir()
            raise

    def _folders(self, name: str) -> list[tuple[int, Path]]:
        folder = self.root / _checked(name)
        if not folder.is_dir():
            return []
        return [(int(path.name), path) for path in folder.iterdir() if VERSION.fullmatch(path.name)]

    def find(self, reference: str) -> Path:
        """The folder of ``name`` (its newest version) or ``name/version``.

        Raises:
            InvalidOption: an invalid reference.
            NotFound: no such model or version.
        """
        name, version = self.locate(reference)
        return self.root / name / str(version)

    def locate(self, reference: str) -> tuple[str, int]:
        """Name and version of what ``find`` finds. Raises as it does."""
        name, slash, version = reference.partition("/")
        versions = self.versions(name)
        if not versions:
            known = ", ".join(self.names()) or "no model"
            raise NotFound(f"model is {name!r}; {self.holds()}", field="model", value=reference, bound=known)
        if slash and version not in map(str, versions):
            raise NotFound(
                f"model is {reference!r}; {name} has versions {versions}",
                field="model", value=reference, bound=", ".join(map(str, versions)),
            )  # fmt: skip
        return name, int(version) if version else versions[-1]

    def specs(self, on_broken: Callable[[str, LowfirstError], None]) -> list[ModelSpec]:
        """All versions of all models, by name and version.

        Args:
            on_broken: called for each unreadable one (``name/version``, and the reason), which is skipped.
        """
        found = []
        for reference in [f"{name}/{version}" for name in self.names() for version in self.versions(name)]:
            try:
                found.append(read_spec(self.root / reference))
            except (BrokenModel, NotFound) as error:  # not found: removed meanwhile
                on_broken(reference, error)
        return found


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise InvalidOption("model", name, "a name of lower-case letters, digits, '.', '_' and '-', at most 64 long")
    return name


def read_spec(folder: Path) -> ModelSpec:
    """The spec in a model or run folder.

    Raises:
        NotFound: no ``model.json`` there.
        BrokenModel: it cannot be read.
    """
    path = folder / SPEC
    if not path.is_file():
        raise NotFound(f"{folder} holds no model: it has no {SPEC}", field="model", value=str(folder))
    try:
        return ModelSpec.from_json(path.read_text())
    except (KeyError, TypeError, ValueError, AttributeError, OSError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise BrokenModel(f"{path} cannot be read: {reason}", field="model", value=str(path)) from error


def write_spec(folder: Path, spec: ModelSpec) -> None:
    """Write ``model.json`` in one step, so that a reader sees the old one or the new one."""
    temporary = folder / (SPEC + ".tmp")
    temporary.write_text(spec.to_json())
    temporary.replace(folder / SPEC)


def verified(folder: Path, name: str, digest: str) -> bytes:
    """The bytes of file ``name`` in a model folder.

    Raises:
        BrokenModel: it is missing, or its SHA-256 is not ``digest``.
    """
    path = folder / name
    if not path.is_file():
        raise BrokenModel(f"{path} is missing", field="model", value=str(folder))
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise BrokenModel(f"{path} has SHA-256 {found}; {SPEC} says {digest}", field="model", value=str(path))
    return data


def read_weights(folder: Path, spec: ModelSpec) -> dict[str, Tensor]:
    """The verified weights of a model folder, float32 on the CPU.

    Raises:
        BrokenModel: the file is missing, its hash does not match the spec, or it contains no weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = verified(folder, WEIGHTS, spec.weights_sha256)
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise BrokenModel(f"{folder / WEIGHTS} cannot be read: {error}", field="model", value=str(folder)) from error
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def write_weights(folder: Path, state: Mapping[str, Tensor]) -> str:
    """Write weights in one step, and return their SHA-256.

    Convolution and linear weights are stored as float16; vectors (norms, biases) as float32, because a running variance
    may be too small for float16.
    """
    from safetensors.torch import save

    data = save(
        {
            name: (tensor.half() if tensor.dim() > 1 else tensor).detach().cpu().contiguous()
            for name, tensor in state.items()
            if tensor.is_floating_point()
        }
    )
    temporary = folder / (WEIGHTS + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(folder / WEIGHTS)
    return hashlib.sha256(data).hexdigest()
