"""What one stage says of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from service.engine.decide import Decision, Escalate


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of B entries: what the stage says, and what becomes of each.

    Attributes:
        probabilities: float32 (B, K), on the host.
        confidences: (B,).
        decisions, is_audited: of each entry. ``is_completed``: whether its other stages run for the sample log.
        seconds: that the stage took.
    """

    probabilities: Tensor
    confidences: Sequence[float]
    decisions: Sequence[Decision]
    is_audited: Sequence[bool]
    is_completed: Sequence[bool]
    seconds: float

    @property
    def kept(self) -> list[int]:
        """Rows whose features are needed again."""
        return [row for row, each in enumerate(self.decisions) if isinstance(each, Escalate) or self.runs_on(row)]

    def runs_on(self, row: int) -> bool:
        """Whether later stages run behind its answer."""
        return self.is_audited[row] or self.is_completed[row]
