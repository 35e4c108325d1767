"""What became of a row: counted, measured, judged against its bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Outcome:
    """A row of the table. Whoever attacks fills it in.

    Attributes:
        row: its name.
        bound: what must hold, in words.
        did: what was done, with numbers.
        fates: of requests, by HTTP status, "lost" (sent, and never answered) or "refused" (never sent: no connection).
        measured: further numbers, by what they are.
        broken: what did not hold, in words; empty: passed.
        seconds: it took.
    """

    row: str
    bound: str
    did: str = ""
    fates: Counter[str] = field(default_factory=Counter)
    measured: dict[str, float | str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.broken

    @property
    def requests(self) -> int:
        """Of which the fate is known."""
        return sum(self.fates.values())

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.broken.append(otherwise)

    def expect_fates(self, *allowed: str) -> None:
        """Every request had one of these."""
        others = {fate: count for fate, count in self.fates.items() if fate not in allowed and count}
        self.expect(not others, f"besides {', '.join(allowed)}: {told(others)}")

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fates": dict(sorted(self.fates.items())), "passed": self.passed}


def told(fates: Mapping[str, int]) -> str:
    """``200: 9,000, 429: 31``."""
    return ", ".join(f"{fate}: {count:,}" for fate, count in sorted(fates.items()))


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The table."""
    lines = ["| row | test | answers | measured | required | |", "|---|---|---|---|---|---|"]
    for each in outcomes:
        measured = ", ".join(f"{name} {_number(value)}" for name, value in each.measured.items())
        verdict = "pass" if each.passed else "**FAIL**: " + "; ".join(each.broken)
        cells = (each.row, each.did, told(each.fates), measured, each.bound, verdict)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
