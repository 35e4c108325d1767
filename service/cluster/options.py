"""Options of ``lowfirst deploy``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from service.errors import InvalidOption

MOST_REPLICAS = 10_000


def _is_divisible(value: float) -> float:
    if value > 1 and value != math.floor(value):
        raise PydanticCustomError("resource", "at most 1, or a whole number: Ray splits one device, not several")
    return value


Replicas = Annotated[int, Field(ge=1, le=MOST_REPLICAS)]
Resource = Annotated[float, Field(ge=0, le=1024, allow_inf_nan=False), AfterValidator(_is_divisible)]


class Options(BaseModel):
    """Number of replicas, and the resources of each.

    Attributes:
        replicas: a fixed number; or
        min_replicas, max_replicas: a number that follows the running requests.
        cpus_per_replica, gpus_per_replica: below 1 several replicas share one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: Replicas = 1
    max_replicas: Replicas | None = None
    min_replicas: Replicas | None = None
    cpus_per_replica: Resource = 1
    gpus_per_replica: Resource = 0

    @field_validator("max_replicas")
    @classmethod
    def _is_instead_of_replicas(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("replicas", 1) != 1:
            raise PydanticCustomError("replicas", "unset if replicas is {n}", {"n": info.data["replicas"]})
        return value

    @field_validator("min_replicas")
    @classmethod
    def _is_below_the_most(cls, value: int | None, info: ValidationInfo) -> int | None:
        most = info.data.get("max_replicas")
        if value is not None and (most is None or value > most):
            raise PydanticCustomError("replicas", "at most max_replicas, which is {most}", {"most": most or "unset"})
        return value

    @property
    def first(self) -> int:
        """Number of replicas at the start."""
        return (self.min_replicas or 1) if self.max_replicas else self.replicas

    @property
    def most(self) -> int:
        """Largest possible number of replicas."""
        return self.max_replicas or self.replicas

    @property
    def resources(self) -> dict[str, float]:
        """Resources of one replica, by Ray's names."""
        return {"CPU": self.cpus_per_replica, "GPU": self.gpus_per_replica}


def read_options(given: Mapping[str, object]) -> Options:
    """``given`` as options. Raises InvalidOption for the first that is out of bounds."""
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidOption(
            ".".join(map(str, first["loc"])), first["input"], first["msg"].removeprefix("Input should be ")
        ) from error
