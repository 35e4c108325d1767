"""State that replicas share: the runtime config and the result cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, Protocol, get_args

from service.errors import ConfigConflict

Goal = Literal["threshold", "max_mean_mmacs", "max_mean_ms", "min_agreement", "max_accuracy_drop"]
GOALS: tuple[Goal, ...] = get_args(Goal)
Table = Literal["stored", "live"]
BUDGETS: tuple[Goal, ...] = ("max_mean_mmacs", "max_mean_ms")  # the others are shares

# How a trial ended. The guard causes the last two.
Ending = Literal["promoted", "cancelled", "disagreement", "errors"]
ENDINGS: tuple[Ending, ...] = get_args(Ending)
GUARDED: tuple[Ending, ...] = ("disagreement", "errors")

PLACE_BYTES, PLACES = 4, 2.0**32  # of a digest that decides whether an image is in the share


@dataclass(frozen=True, slots=True)
class ThresholdConfig:
    """One model's threshold: the goal (``goal``, ``value``), the threshold solved from it, and the floor.

    ``floor`` is the lowest threshold that overload may cause; None never lowers it. ``table`` solves the goal: the
    model's own, or ``live`` traffic, which then moves the threshold.
    """

    goal: Goal
    value: float
    threshold: float
    floor: float | None = None
    table: Table = "stored"


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial of a model on a share of the images of a served model: a canary or a shadow.

    Attributes:
        name, version: of the model on trial. ``beside``: name of the served model.
        share: of the images, see ``picks``.
        is_shadow: whether it runs in the background, or answers itself.
        max_disagreement: above this share of differing or failing images the trial ends by itself; None: never.
        threshold: the goal of the served model, solved for this one.
        began: seconds since the epoch; distinguishes trials of the same model.
    """

    name: str
    version: int
    beside: str
    share: float
    is_shadow: bool
    max_disagreement: float | None
    threshold: ThresholdConfig
    began: float

    @property
    def key(self) -> tuple[str, int]:
        """Name and version."""
        return self.name, self.version

    @property
    def reference(self) -> str:
        """``name/version``."""
        return f"{self.name}/{self.version}"

    @property
    def kind(self) -> Literal["canary", "shadow"]:
        """canary or shadow."""
        return "shadow" if self.is_shadow else "canary"

    def picks(self, image: bytes) -> bool:
        """Whether an encoded image is in the share: always the same, and also in every larger share."""
        return place(image) < self.share


def place(image: bytes) -> float:
    """Position of an encoded image, from 0 to below 1: its BLAKE2b digest of four bytes over 2^32."""
    return int.from_bytes(blake2b(image, digest_size=PLACE_BYTES).digest(), "big") / PLACES


@dataclass(frozen=True, slots=True)
class EndedTrial:
    """How the latest trial ended: ``why`` in words, ``at`` in seconds since the epoch; otherwise see ``Trial``."""

    name: str
    version: int
    beside: str
    outcome: Ending
    why: str
    at: float


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Config that can be changed while the server runs.

    Attributes:
        version: incremented by every change.
        thresholds: of each served model, by name.
        models: version of each served model, by name; requests without a model use the first.
        trial: the running trial. ``ended``: the latest one that ended.
    """

    version: int
    thresholds: Mapping[str, ThresholdConfig]
    models: Mapping[str, int]
    trial: Trial | None = None
    ended: EndedTrial | None = None

    @property
    def served(self) -> tuple[tuple[str, int], ...]:
        """Name and version of each served model, in order."""
        return tuple(self.models.items())


Change = Callable[[RuntimeConfig], RuntimeConfig]


class ConfigSource(Protocol):
    """Source of the runtime config."""

    @property
    def current(self) -> RuntimeConfig:
        """The newest config known to this process; costs nothing."""
        ...


class ConfigStore(ConfigSource, Protocol):
    """Holds the runtime config. One contract test suite runs over every implementation."""

    @property
    def is_up(self) -> bool:
        """Whether the shared state can be reached."""
        ...

    @property
    def is_invalid(self) -> bool:
        """Whether the shared config is ignored, and the last valid one stays in force."""
        ...

    @property
    def announced(self) -> Mapping[str, int]:
        """The models that another replica announced last, version by name; none without an announcement."""
        ...

    async def start(self) -> None:
        """Take over the shared config, and follow it from now on; raises nothing if it cannot be reached."""
        ...

    async def announce(self, models: Mapping[str, int]) -> None:
        """Announce to the other replicas which models will be requested; lost if they cannot be reached."""
        ...

    async def tell_prepared(self, models: Mapping[str, int], why_not: str | None = None) -> None:
        """Report to the announcer of ``models`` that they are ready here, or why they cannot be."""
        ...

    async def others_prepared(self) -> list[str]:
        """Wait until every replica that received the announcement has reported; for ever if one is lost.

        Returns the reasons of the replicas that cannot prepare the models.
        """
        ...

    async def tell_serving(self, version: int) -> None:
        """Report to the other replicas that the models of this config version are served here, or cannot be."""
        ...

    async def others_serving(self, version: int) -> None:
        """Wait until every replica that received the announcement has reported this version or a later one."""
        ...

    def turn(self) -> AbstractAsyncContextManager[object]:
        """Context in which no other replica changes the served models; to enter it, wait for the one that does.

        If the shared state cannot be reached, it does not wait, because no change is possible.
        """
        ...

    async def close(self) -> None:
        """Stop following."""
        ...

    async def update(self, change: Change, expected_version: int | None = None) -> RuntimeConfig:
        """Replace the config by ``change(current)``, with the next version, in one atomic step; returns the new config.

        Raises:
            ConfigConflict: the version is not ``expected_version``, or another change came between.
            StoreUnavailable: the shared state cannot be reached.
        """
        ...


def check_expected_version(config: RuntimeConfig, expected: int | None) -> None:
    """Raise ConfigConflict if another version than ``config``'s is expected."""
    if expected is not None and config.version != expected:
        raise ConfigConflict(
            f"If-Match is {expected}; the config has version {config.version}",
            field="If-Match",
            value=expected,
            bound=config.version,
        )


@dataclass(frozen=True, slots=True)
class CachedOutputs:
    """The probabilities, of length K, of each stage that ran on an image.

    They give an answer at any threshold, so a changed threshold invalidates nothing.
    """

    outputs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """Metrics address of one replica: ``address`` is host:port, ``replica`` the replica's name."""

    address: str
    replica: str


class Targets(Protocol):
    """Metrics addresses of all live replicas. One contract test suite runs over every implementation."""

    async def start(self, own: Target) -> None:
        """List ``own`` while this process lives."""
        ...

    async def close(self) -> None:
        """Remove it from the list."""
        ...

    async def listed(self) -> list[Target]:
        """The targets of all replicas, by address.

        Raises:
            StoreUnavailable: the shared state cannot be reached.
        """
        ...


class ResultCache(Protocol):
    """Outputs by key. One contract test suite runs over every implementation."""

    async def get(self, key: str) -> CachedOutputs | None:
        """The outputs under ``key``; None on a miss or if the cache cannot be reached."""
        ...

    async def put(self, key: str, known: CachedOutputs) -> None:
        """Store ``known`` under ``key``; an entry is never replaced by one with fewer stages."""
        ...
