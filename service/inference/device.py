"""Where a network computes, and in what precision."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from service.cores import cores as cores
from service.errors import InvalidOption

Precision = Literal["float32", "bfloat16", "float16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def choose_device(name: str) -> torch.device:
    """``auto`` -> CUDA if available, otherwise the CPU; ``cpu``, ``cuda`` or ``cuda:N`` as named.

    Raises:
        InvalidOption: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{device.type} is not supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidOption("device", name, f"auto, cpu or a CUDA device of this machine ({error})") from error
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """``auto`` -> bfloat16 if the device computes it fast, otherwise float32; a precision as named.

    Raises:
        InvalidOption: no such precision, or not on this device.
    """
    if name == "auto":
        return "bfloat16" if _has_fast_bfloat16(device) else "float32"
    elsewhere = "float16" if device.type == "cpu" else "int8"
    if name not in PRECISIONS or name == elsewhere:
        raise InvalidOption("precision", name, "auto, float32, bfloat16, float16 (CUDA only) or int8 (OpenVINO only)")
    return name  # type: ignore[return-value]


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
