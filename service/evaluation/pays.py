"""Whether a cascade pays on this machine: its time per image compared with the single-scale network's."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from service.inference.latency import LatencyTable
from service.inference.predictor import Predictor
from service.stages import mean_cost

DEFAULT_ESCALATED = 0.35  # where nothing is known of the model


@dataclass(frozen=True, slots=True)
class Payoff:
    """Worker milliseconds per image, in batches of the best size, without decoding.

    Attributes:
        names: of the stages.
        stage_ms: each stage alone. ``single_ms``: the single-scale network.
        reaching: share of images that reach each stage; 1 for the first.
        mean_ms: with these shares.
        break_even: share of images that must end at the first stage for the cascade to take as long as the single-scale
            network; above 1 it never pays. The others are assumed to run every stage. None for a single stage.
        threshold: that gives these shares; None if the shares were given.
        price_per_hour: of one worker; None if unknown.
    """

    names: tuple[str, ...]
    stage_ms: tuple[float, ...]
    single_ms: float
    reaching: tuple[float, ...]
    mean_ms: float
    break_even: float | None
    threshold: float | None
    price_per_hour: float | None = None

    @property
    def saved(self) -> float:
        """Share of the single-scale network's time saved; negative if the cascade takes longer."""
        return 1 - self.mean_ms / self.single_ms

    def told(self) -> str:
        """In sentences."""
        stages = ", ".join(f"{name} {ms:.3f} ms" for name, ms in zip(self.names, self.stage_ms, strict=True))
        told = f"Per image on one worker: {stages}; the single-scale network {self.single_ms:.3f} ms."
        if self.break_even is None:
            return told
        where = "" if self.threshold is None else f" at its default threshold {self.threshold:g}"
        exits = 1 - self.reaching[1]
        told += f" {100 * exits:.0f} % end at the first stage{where}: {self.mean_ms:.3f} ms per image, "
        if self.saved >= 0:
            told += f"{100 * self.saved:.0f} % of the time saved. "
        else:
            told += f"{-100 * self.saved:.0f} % more than the single-scale network: serve the single-scale network. "
        if self.break_even > 1:
            told += "It does not pay here at any threshold."
        else:
            told += f"It pays from {100 * max(0.0, self.break_even):.0f} % on."
        if self.price_per_hour is not None:
            cascade, single = (ms * 1e3 * self.price_per_hour / 3600 for ms in (self.mean_ms, self.single_ms))
            told += f" A million images cost {cascade:.2f}; {single:.2f} with the single-scale network."
        return told


def payoff(
    predictor: Predictor,
    table: LatencyTable,
    escalated: float | None = None,
    price_per_hour: float | None = None,
) -> Payoff:
    """Whether the model pays, given times that include the single-scale network's.

    Args:
        escalated: share of images that escalate from each stage; None uses the model's own at its default threshold.
    """
    spec = predictor.spec
    limit = max(max(times) for times in table.stages)
    seconds = table.seconds_per_image(limit)
    single = table.single_seconds_per_image(limit)
    assert single is not None
    threshold: float | None = predictor.default_threshold.threshold
    if escalated is None and predictor.calibration is not None:
        ends = predictor.calibration.predict(threshold or 0.0).ends
        ended = (0.0, *accumulate(ends))
        reaching = tuple(1 - share for share in ended[:-1])
    else:
        threshold, share = None, DEFAULT_ESCALATED if escalated is None else escalated
        reaching = tuple(share**stage for stage in range(spec.depth))
    ends = tuple(now - later for now, later in zip(reaching, (*reaching[1:], 0.0), strict=True))
    return Payoff(
        tuple(stage.name for stage in spec.stages),
        tuple(1e3 * each for each in seconds),
        1e3 * single,
        reaching,
        1e3 * mean_cost(ends, seconds),
        table.break_even(limit),
        threshold,
        price_per_hour,
    )
