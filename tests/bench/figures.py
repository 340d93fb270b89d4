"""Durations of one thing done many times, and a table of several such."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Series:
    """How long one thing took, time after time.

    Attributes:
        name: What was done.
        seconds: Of each.
        budget: How many times the first series of a table its median may be; None when nothing is promised.
    """

    name: str
    seconds: Sequence[float]
    budget: float | None = None

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)


def table(series: Sequence[Series]) -> str:
    """Lay series out, in milliseconds; the first is what the others are compared with."""
    first = series[0].median
    lines = [f"{'':<32} {'n':>4} {'median':>8} {'min':>8} {'max':>8}  ratio"]
    for one in series:
        ratio = one.median / first
        figures = "".join(f" {value * 1000:8.1f}" for value in (one.median, min(one.seconds), max(one.seconds)))
        verdict = "" if one.budget is None else f", budget {one.budget:g}: {'kept' if ratio <= one.budget else 'OVER'}"
        lines.append(f"{one.name:<32} {len(one.seconds):>4}{figures}  {ratio:.2f}{verdict}")
    return "\n".join(lines)


def kept(series: Sequence[Series]) -> bool:
    """Tell whether each is within its budget."""
    return all(one.budget is None or one.median <= one.budget * series[0].median for one in series)
