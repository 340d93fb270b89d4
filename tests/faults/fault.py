"""What a class of faults is: one row of the table, which goes on for as long as it is given."""

import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.faults.tally import Tally

Kind = TypeVar("Kind")


class Budget:
    """How long a fault may go on: until its time is over, or until it has done enough.

    Args:
        seconds: Wall time, from the first round on. What has begun is finished; nothing new begins after it.
        most: Rounds after which it ends in any case; None: as many as fit.
        least: Rounds that are done in any case, also when the time is over.
        impatient: Whether the first failure ends it; for whoever wants to know only whether there is one.
    """

    def __init__(self, seconds: float, *, most: int | None = None, least: int = 1, impatient: bool = False) -> None:
        self.seconds = seconds
        self.most = most
        self.impatient = impatient
        self._least = least
        self._ends: float | None = None
        self._begun = 0

    def parts(self, count: int) -> Iterator["Budget"]:
        """Give each of so many parts, when its turn comes, an equal share of the rounds, and of the time that is left.

        Each has a round in any case; what goes by outside of the rounds counts too.
        """
        ends = time.monotonic() + self.seconds
        most = None if self.most is None else max(1, round(self.most / count))
        for left in range(count, 0, -1):
            seconds = max(0.0, ends - time.monotonic()) / left
            yield Budget(seconds, most=most, impatient=self.impatient)

    def each(self, kinds: Sequence[Kind], chance: random.Random) -> Iterator[Kind]:
        """Go through kinds for as long as it goes on, in another order each time.

        Each has its round in any case, unless the rounds are limited.
        """
        self._least = max(self._least, len(kinds))
        while True:
            for kind in chance.sample(kinds, len(kinds)):
                if not self.more():
                    return
                yield kind

    @property
    def over(self) -> bool:
        """Whether its time is over, for what may be cut short in the middle of a round."""
        return self._ends is not None and time.monotonic() >= self._ends

    def more(self) -> bool:
        """Tell whether another round may begin, and count it; the condition of every loop over rounds."""
        if self.most is not None and self._begun >= self.most:
            return False
        if self._ends is None:
            self._ends = time.monotonic() + self.seconds
        if self._begun >= self._least and time.monotonic() >= self._ends:
            return False
        self._begun += 1
        return True


@dataclass(frozen=True, slots=True)
class Ground:
    """What every fault is given.

    Attributes:
        folder: An empty folder of its own, with a short path (a socket's has 107 bytes).
        seed: Of all that is random; with the same one, the same choices are made.
        chance: Seeded with it.
    """

    folder: Path
    seed: int
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chance", random.Random(self.seed))


Run = Callable[[Ground, Budget, Tally], Awaitable[None]]
"""Does one class of faults until the budget is over, and counts in the row (`Tally.fail`). What it raises ends it, and
is counted too, by its kind: whether the agent or the campaign broke, nobody may take it for a success."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row.

    Attributes:
        key: To choose it by on the command line, such as `kill.point.process`.
        name: Of its row.
        run: Does it.
        share: Of the time that is shared, relative to the others.
        lacks: Says what this machine lacks for it; nothing when it can be done here.
        takes: Seconds that it takes in any case, on two cores: its setting up, one round, or all that it does when
            that is always the same. They are kept for it, and only the rest is shared.
    """

    key: str
    name: str
    run: Run
    share: float = 1.0
    lacks: Callable[[], Sequence[str]] = tuple
    takes: float = 5.0


def missing(faults: Iterable[Fault]) -> dict[str, list[str]]:
    """Return what this machine lacks, and the rows that cannot be done without it."""
    found: dict[str, list[str]] = {}
    for fault in faults:
        for lack in fault.lacks():
            found.setdefault(lack, []).append(fault.key)
    return found
