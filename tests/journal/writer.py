"""An agent that only writes its journal, and says what was written; a program, to be killed at any moment.

`python -m tests.journal.writer FOLDER JOURNAL_ID FIRST`: takes activities from FIRST on through their lives.
"""

import asyncio
import sys
from itertools import count
from pathlib import Path

from agent.conditions import Conditions
from agent.journal import Journal
from agent.protocol import ReportOutcome, ReportStatus, Verb
from tests.journal.conftest import activity


async def write(folder: Path, journal_id: str, first: int) -> None:
    journal = await Journal.open(folder, journal_id=journal_id, conditions=Conditions())
    facts = {"running": True, "incarnation": "inc-1", "boot_id": "boot-1", "detail": {}}
    for number in count(first):
        token = await journal.begin_sweep()
        await journal.take([activity(number)], sweep=token)
        await journal.end_sweep(token, last=number)
        assert await journal.start(number, Verb.RESTART)
        print("started", number, journal.revision, flush=True)
        await journal.record(number, "restart", decisive=True, **facts)  # type: ignore[arg-type] # as a driver gives them
        print("called", number, journal.revision, flush=True)
        assert await journal.finish(number, status=ReportStatus.COMPLETED)
        print("finished", number, journal.revision, flush=True)
        await journal.reported({number: ReportOutcome.RECORDED})
        print("reported", number, journal.revision, flush=True)


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
