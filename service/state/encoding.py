"""Encodes the runtime config and cached outputs as bytes that other replicas and releases can read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

from service.state.base import (
    BUDGETS,
    ENDINGS,
    GOALS,
    CachedOutputs,
    EndedTrial,
    RuntimeConfig,
    Table,
    ThresholdConfig,
    Trial,
)

FORMAT = 1
MAX_VERSION = 2**53 - 1  # what every JSON reader keeps exactly
MAX_ECHO = 300


class Unreadable(Exception):
    """Bytes that are not a usable config; the message says why. ``is_newer``: a newer release wrote them."""

    def __init__(self, raw: bytes, why: str, is_newer: bool = False) -> None:
        super().__init__(why)
        self.raw = raw
        self.is_newer = is_newer


def encode_config(config: RuntimeConfig) -> bytes:
    """``config`` as JSON.

    The trial field exists only during a trial: releases without trials can read the rest, and ignore the trial.
    """
    thresholds = {name: _told(threshold) for name, threshold in config.thresholds.items()}
    told = {"format": FORMAT, "version": config.version, "thresholds": thresholds, "models": dict(config.models)}
    if config.trial is not None:
        told["trial"] = asdict(config.trial)
    if config.ended is not None:
        told["ended"] = asdict(config.ended)
    return json.dumps(told, allow_nan=False).encode()


def decode_config(raw: bytes) -> RuntimeConfig:
    """Inverse of ``encode_config``.

    Raises:
        Unreadable: out of bounds, not a config, or written by a newer release.
    """
    try:
        told = json.loads(raw)
        if told["format"] != FORMAT:
            is_newer = _is_whole(told["format"], FORMAT + 1)
            raise Unreadable(raw, f"it has format {told['format']!r}; this release knows {FORMAT}", is_newer)
        if not told["models"]:
            raise ValueError("models is empty")
        models = {name: _version(version, f"models.{name}") for name, version in told["models"].items()}
        return RuntimeConfig(
            _version(told["version"], "version"),
            {name: _threshold(f"thresholds.{name}", fields) for name, fields in told["thresholds"].items()},
            models,
            _trial(told["trial"], models) if "trial" in told else None,
            _ended(told["ended"]) if "ended" in told else None,
        )
    except KeyError as error:
        raise Unreadable(raw, f"{error.args[0]} is missing") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise Unreadable(raw, str(error)[:MAX_ECHO]) from error


def _told(threshold: ThresholdConfig) -> dict[str, Any]:
    """Its fields; without ``table`` for the stored one, because earlier releases do not know the field."""
    fields = asdict(threshold)
    return {field: value for field, value in fields.items() if (field, value) != ("table", "stored")}


def _threshold(where: str, fields: Mapping[str, Any]) -> ThresholdConfig:
    config = ThresholdConfig(**fields)
    if config.goal not in GOALS:
        raise ValueError(f"{where}.goal is {config.goal!r}; it must be one of {', '.join(GOALS)}")
    if config.table not in get_args(Table):
        raise ValueError(f"{where}.table is {config.table!r}; it must be one of {', '.join(get_args(Table))}")
    _check_between(config.value, f"{where}.value", math.inf if config.goal in BUDGETS else 1)
    _check_between(config.threshold, f"{where}.threshold", 1)
    if config.floor is not None and not _is_between(config.floor, 0, config.threshold):
        raise ValueError(f"{where}.floor is {config.floor!r}; it must be between 0 and the threshold")
    return config


def _trial(fields: Mapping[str, Any], models: Mapping[str, int]) -> Trial:
    trial = Trial(**{**fields, "threshold": _threshold("trial.threshold", fields["threshold"])})
    _version(trial.version, "trial.version")
    _check_between(trial.share, "trial.share", 1)
    if trial.max_disagreement is not None:
        _check_between(trial.max_disagreement, "trial.max_disagreement", 1)
    _check_between(trial.began, "trial.began", math.inf)
    if not isinstance(trial.is_shadow, bool):
        raise ValueError(f"trial.is_shadow is {trial.is_shadow!r}; it must be true or false")
    if trial.beside not in models:
        raise ValueError(f"trial.beside is {trial.beside!r}; it must be one of {', '.join(models)}")
    others = {name: version for name, version in models.items() if name != trial.beside or version == trial.version}
    if not isinstance(trial.name, str) or trial.name in others:
        raise ValueError(f"trial.name is {trial.name!r}; it must be that of a model that is not served")
    return trial


def _ended(fields: Mapping[str, Any]) -> EndedTrial:
    ended = EndedTrial(**fields)
    _version(ended.version, "ended.version")
    if ended.outcome not in ENDINGS:
        raise ValueError(f"ended.outcome is {ended.outcome!r}; it must be one of {', '.join(ENDINGS)}")
    for name in ("name", "beside", "why"):
        if not isinstance(getattr(ended, name), str):
            raise ValueError(f"ended.{name} is {getattr(ended, name)!r}; it must be text")
    _check_between(ended.at, "ended.at", math.inf)
    return ended


def _version(value: Any, name: str) -> int:
    if not _is_whole(value, 1) or value > MAX_VERSION:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to {MAX_VERSION}")
    return cast(int, value)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_between(value: Any, name: str, most: float) -> None:
    if not _is_between(value, 0, most):
        raise ValueError(f"{name} is {value!r}; it must be between 0 and {most}")


def _is_between(value: Any, least: float, most: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and least <= value <= most


@dataclass(frozen=True)
class Notice:
    """A message from one replica to the others.

    Attributes:
        sender: its id.
        models: that will be requested, version by name.
        is_prepared: whether it reports that they are prepared, or cannot be; otherwise it is the announcement.
        why_not: why they cannot be prepared.
        serving: the config version that the sender serves; if set, the message reports only this.
    """

    sender: str
    models: Mapping[str, int]
    is_prepared: bool = False
    why_not: str | None = None
    serving: int | None = None


def encode_notice(notice: Notice) -> bytes:
    """``notice`` as JSON. Fields that earlier releases do not know are included only if set."""
    told = {"sender": notice.sender, "models": dict(notice.models), "prepared": notice.is_prepared}
    if notice.why_not is not None:
        told["why_not"] = notice.why_not[:MAX_ECHO]
    if notice.serving is not None:
        told["serving"] = notice.serving
    return json.dumps(told).encode()


def decode_notice(raw: bytes) -> Notice | None:
    """Inverse of ``encode_notice``; None for other input."""
    try:
        told = json.loads(raw)
        models = {str(name): _version(version, name) for name, version in told["models"].items()}
        why_not = told.get("why_not")
        return Notice(
            str(told["sender"]),
            models,
            told["prepared"] is True,
            None if why_not is None else str(why_not)[:MAX_ECHO],
            _version(told["serving"], "serving") if "serving" in told else None,
        )
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def encode_outputs(known: CachedOutputs) -> bytes:
    """One byte for the number of stages; then their probabilities, eight bytes each."""
    numbers = [number for output in known.outputs for number in output]
    return struct.pack(f"<B{len(numbers)}d", len(known.outputs), *numbers)


def decode_outputs(raw: bytes) -> CachedOutputs | None:
    """Inverse of ``encode_outputs``; None for other input."""
    stages = raw[0] if raw else 0
    if not stages or len(raw) == 1 or (len(raw) - 1) % (8 * stages):
        return None
    known = struct.unpack_from(f"<{(len(raw) - 1) // 8}d", raw, 1)
    if not all(0 <= probability <= 1 for probability in known):
        return None
    classes = len(known) // stages
    return CachedOutputs(tuple(known[start : start + classes] for start in range(0, len(known), classes)))
