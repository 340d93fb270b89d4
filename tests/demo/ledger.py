"""What the demo expects, kept beside the story, and judged by counts that do not come from the agent."""

from collections import Counter
from dataclasses import dataclass, field

from agent.protocol import ActivityStatus, RuntimeName
from tests.e2e.public_api import Activity
from tests.e2e.rig import Rig


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it went.

    Attributes:
        completed: Activities that the Supervisor lists as completed.
        rejected: And as rejected.
        repeated: Runs of a runtime beyond those that the actions ask for, and activities that nobody dispatched.
        lost: Runs that are missing, and dispatched activities without a result.
    """

    completed: int
    rejected: int
    repeated: int
    lost: int

    def line(self, seconds: float) -> str:
        """Write the last line of the demo."""
        counts = f"completed={self.completed} rejected={self.rejected} repeated={self.repeated} lost={self.lost}"
        return f"demo: {counts} seconds={seconds:.1f}"


@dataclass(slots=True)
class Ledger:
    """Expectations, and what was not as it should be."""

    rig: Rig
    births: Counter[RuntimeName] = field(default_factory=Counter)
    """How often each runtime has to have been started by now."""
    results: dict[int, tuple[ActivityStatus, str | None]] = field(default_factory=dict)
    """The status and the code that each dispatched activity has to end with."""
    problems: list[str] = field(default_factory=list)

    def check(self, fact: bool, problem: str) -> None:
        """Note a problem unless something is so."""
        if not fact:
            self.problems.append(problem)

    def judge(self, activity: Activity) -> None:
        """Compare a finished activity with what was expected of it, and the runs of its runtime so far."""
        expected, name = self.results[activity.id], f"{activity.runtime} {activity.action} ({activity.id})"
        got = activity.status, activity.code
        self.check(got == expected, f"{name} ended as {_words(got)}, not {_words(expected)}: {activity.message}")
        runtime = RuntimeName(activity.runtime)
        seen, wanted = len(self.rig.births(runtime)), self.births[runtime]
        self.check(seen == wanted, f"after {name}, {runtime} had been started {seen} times, not {wanted}")

    def close(self, listed: list[Activity]) -> Verdict:
        """Count everything once more at the end, from the Supervisor's list and the programs' own records."""
        by_id = {activity.id: activity for activity in listed}
        unasked = by_id.keys() - self.results.keys()
        unfinished = [
            activity_id
            for activity_id in self.results
            if activity_id not in by_id or by_id[activity_id].status is ActivityStatus.PROCESSING
        ]
        for activity_id, expected in self.results.items():
            activity = by_id.get(activity_id)
            got = None if activity is None else (activity.status, activity.code)
            self.check(got == expected, f"activity {activity_id} is listed as {_words(got)}, not {_words(expected)}")
        differences = [len(self.rig.births(runtime)) - self.births[runtime] for runtime in RuntimeName]
        verdict = Verdict(
            completed=sum(activity.status is ActivityStatus.COMPLETED for activity in listed),
            rejected=sum(activity.status is ActivityStatus.REJECTED for activity in listed),
            repeated=len(unasked) + sum(difference for difference in differences if difference > 0),
            lost=len(unfinished) - sum(difference for difference in differences if difference < 0),
        )
        self.check(verdict.repeated == 0, f"{verdict.repeated} effects were repeated")
        self.check(verdict.lost == 0, f"{verdict.lost} effects or results were lost")
        return verdict


def _words(result: tuple[ActivityStatus, str | None] | None) -> str:
    if result is None:
        return "nothing"
    status, code = result
    return f"{status} ({code})" if code else str(status)
