"""What replicas share: the runtime config, and results already computed."""

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

# How a trial ended. The last two are its guard's doing.
Ending = Literal["promoted", "cancelled", "disagreement", "errors"]
ENDINGS: tuple[Ending, ...] = get_args(Ending)
GUARDED: tuple[Ending, ...] = ("disagreement", "errors")

PLACE_BYTES, PLACES = 4, 2.0**32  # of a digest that says whether an image is of a share


@dataclass(frozen=True, slots=True)
class ThresholdConfig:
    """One model's threshold: what was asked (``goal``, ``value``), the threshold solved from it, and the floor.

    ``floor`` is how low an overloaded server may bring the threshold; None never lowers it. ``table`` is what the goal
    is held by: the model's own, or ``live`` traffic, which moves the threshold from ``threshold`` on.
    """

    goal: Goal
    value: float
    threshold: float
    floor: float | None = None
    table: Table = "stored"


@dataclass(frozen=True, slots=True)
class Trial:
    """A model that is tried on a share of the images of one that is served: a canary, or a shadow.

    Attributes:
        name, version: what is tried. ``beside``: the name of what is served.
        share: of the images, see ``picks``.
        is_shadow: whether it runs behind the answers of what is served, or gives them itself.
        max_disagreement: once more of the images differ, or fail, the trial ends by itself; None: never.
        threshold: what was asked of the model that it is tried beside, solved for this one.
        began: seconds since the epoch; tells it from another trial of the same model.
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
        """In a word."""
        return "shadow" if self.is_shadow else "canary"

    def picks(self, image: bytes) -> bool:
        """Whether an encoded image is of the share: always the same, and of every larger share too."""
        return place(image) < self.share


def place(image: bytes) -> float:
    """Where the bytes of an encoded image stand, from 0 to below 1: their BLAKE2b digest of four bytes over 2^32."""
    return int.from_bytes(blake2b(image, digest_size=PLACE_BYTES).digest(), "big") / PLACES


@dataclass(frozen=True, slots=True)
class EndedTrial:
    """How the latest trial ended: ``why`` in words, ``at`` in seconds since the epoch; else see ``Trial``."""

    name: str
    version: int
    beside: str
    outcome: Ending
    why: str
    at: float


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """What can be changed while the server runs.

    Attributes:
        version: grows by one with every change.
        thresholds: of each served model, by its name.
        models: version of each served model, by its name; the first is the one a request means that names none.
        trial: of another model beside one of them. ``ended``: the latest one that was over.
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
    """Knows the runtime config."""

    @property
    def current(self) -> RuntimeConfig:
        """The newest config this process knows; costs nothing."""
        ...


class ConfigStore(ConfigSource, Protocol):
    """Holds the runtime config. One contract test suite runs over every implementation."""

    @property
    def is_up(self) -> bool:
        """Whether what replicas share is within reach."""
        ...

    @property
    def is_invalid(self) -> bool:
        """Whether what stands there is ignored, and the last good config stays in force."""
        ...

    @property
    def announced(self) -> Mapping[str, int]:
        """The models that another replica said last it would ask for, version by name; none if none did."""
        ...

    async def start(self) -> None:
        """Take over what is shared, and follow it from now on; raises nothing when it is out of reach."""
        ...

    async def announce(self, models: Mapping[str, int]) -> None:
        """Tell the other replicas which models will be asked for, if all goes well; lost when they are out of reach."""
        ...

    async def tell_prepared(self, models: Mapping[str, int], why_not: str | None = None) -> None:
        """Tell who announced ``models`` that they are ready here, or why they cannot be."""
        ...

    async def others_prepared(self) -> list[str]:
        """Wait until every replica that heard what was announced here is prepared; for ever for one that is lost.

        Gives why those cannot that cannot.
        """
        ...

    async def tell_serving(self, version: int) -> None:
        """Tell the other replicas that what this version of the config names is served here, or cannot be."""
        ...

    async def others_serving(self, version: int) -> None:
        """Wait until every replica that heard what was announced here has told of this version, or of a later one."""
        ...

    def turn(self) -> AbstractAsyncContextManager[object]:
        """Within, no other replica changes which models are served; it waits for the one that does.

        Where what replicas share is out of reach nothing is waited for: no change can be made.
        """
        ...

    async def close(self) -> None:
        """Follow no more."""
        ...

    async def update(self, change: Change, expected_version: int | None = None) -> RuntimeConfig:
        """Replace the config by ``change(current)``, one version on, in one atomic step; gives the new config.

        Raises:
            ConfigConflict: the version is not ``expected_version``, or another change came between.
            StoreUnavailable: what replicas share is out of reach.
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

    Answers follow from them at any threshold, so a changed threshold invalidates nothing.
    """

    outputs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """Where one replica's own metrics are: ``address`` is host:port, ``replica`` the replica's name."""

    address: str
    replica: str


class Targets(Protocol):
    """Where the metrics of every live replica are. One contract test suite runs over every implementation."""

    async def start(self, own: Target) -> None:
        """List ``own`` for as long as this process lives."""
        ...

    async def close(self) -> None:
        """List it no more."""
        ...

    async def listed(self) -> list[Target]:
        """Those of all replicas, by address.

        Raises:
            StoreUnavailable: what replicas share is out of reach.
        """
        ...


class ResultCache(Protocol):
    """Outputs by key. One contract test suite runs over every implementation."""

    async def get(self, key: str) -> CachedOutputs | None:
        """What is known under ``key``; None on a miss or when the cache is out of reach."""
        ...

    async def put(self, key: str, known: CachedOutputs) -> None:
        """Keep ``known`` under ``key``; an entry is never replaced by one of fewer stages."""
        ...
