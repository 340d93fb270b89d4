"""What a campaign counted, and the table that it ends with."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self


class LostError(AssertionError):
    """An activity has no effect, or no report, that it should have."""


class RepeatedError(AssertionError):
    """An effect happened more often than it was asked for."""


class FalseReportError(AssertionError):
    """A report does not say what was."""


STORIES = 20
"""How many failures a row tells; all are counted."""


@dataclass(slots=True)
class Tally:
    """One row: one class of faults.

    Attributes:
        fault: Its name, such as `kill -9 at a traced point, systemd`.
        injected: How many faults were injected: of each kind that one is counted which really came.
        cases: How many activities, or other whole stories, were judged.
        effects_expected: How often the runtimes had to be started.
        effects_seen: How often they were, as they recorded it themselves; less what the campaign itself did.
        reports_expected: How many activities were dispatched.
        reports_seen: How many have exactly one final report at the Supervisor.
        lost: Effects or reports that are missing.
        repeated: Effects too many.
        false: Reports, or other claims of the agent, that are not true; and whatever else must never be.
        broken: How many errors ended the row before its time; they are among the failures.
        stories: What went wrong, for people.
        notes: What else was measured, for people, such as `resident memory grew by 0.1 MB`.
    """

    fault: str
    injected: int = 0
    cases: int = 0
    effects_expected: int = 0
    effects_seen: int = 0
    reports_expected: int = 0
    reports_seen: int = 0
    lost: int = 0
    repeated: int = 0
    false: int = 0
    broken: int = 0
    stories: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fail(self, story: str, error: BaseException) -> None:
        """Count a failure by its kind: lost (a wait in vain is one too), repeated, or else false."""
        if isinstance(error, LostError | TimeoutError):
            self.lost += 1
        elif isinstance(error, RepeatedError):
            self.repeated += 1
        else:
            self.false += 1
        if len(self.stories) < STORIES:
            notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
            self.stories.append(f"{self.fault}: {story}: {error!r}{notes}")

    def missed(self, story: str, points: Sequence[Sequence[str]]) -> None:
        """Note the points that were planned, twice, and did not come."""
        if points:
            self.notes.append(f"{story}: passed without a kill, and not reached again: {', '.join(map(str, points))}")

    def add(self, other: "Tally") -> None:
        """Add what was counted for the same row elsewhere."""
        for name, value in asdict(other).items():
            if name != "fault":
                setattr(self, name, getattr(self, name) + value)
        del self.stories[STORIES:]

    @property
    def good(self) -> bool:
        """Whether something was done, and nothing was wrong."""
        return self.injected > 0 and not self.wrong

    @property
    def wrong(self) -> int:
        """How many failures there were."""
        return self.lost + self.repeated + self.false

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what `as_json` returned."""
        return cls(**values)


COLUMNS = ("fault", "injected", "cases", "effects", "seen", "reports", "seen", "lost", "repeated", "false")


def table(rows: Iterable[Tally]) -> str:
    """Write the rows as a Markdown table, which is read well in a terminal too."""
    cells = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return "\n".join(_line(line, widths) for line in (cells[0], rule, *cells[1:]))


def _cells(row: Tally) -> tuple[str, ...]:
    numbers = (
        *(row.injected, row.cases, row.effects_expected, row.effects_seen),
        *(row.reports_expected, row.reports_seen, row.lost, row.repeated, row.false),
    )
    return (row.fault, *(f"{number:,}" for number in numbers))


def _line(cells: Iterable[str], widths: list[int]) -> str:
    first, *rest = cells
    return (
        " | ".join(
            [f"| {first.ljust(widths[0])}", *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        )
        + " |"
    )


def last_line(rows: Iterable[Tally], seconds: float) -> str:
    """Say it all in one line, for scripts."""
    rows = list(rows)
    counted = {
        "injected": sum(row.injected for row in rows),
        "lost": sum(row.lost for row in rows),
        "repeated": sum(row.repeated for row in rows),
        "false": sum(row.false for row in rows),
        "seconds": round(seconds),
    }
    return "faults: " + " ".join(f"{name}={value}" for name, value in counted.items())
