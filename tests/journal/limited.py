"""An agent whose files cannot be written for a while (RLIMIT_FSIZE), as on a disk that fails.

`python -m tests.journal.limited FOLDER JOURNAL_ID`: prints as JSON what the journal said meanwhile, and afterwards.
"""

import asyncio
import json
import resource
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from agent.conditions import Conditions
from agent.errors import JournalError
from agent.journal import Journal
from agent.protocol import ReportStatus, Verb
from tests.journal.conftest import activity


async def error_of(call: Awaitable[object]) -> str | None:
    try:
        await call
    except JournalError as error:
        return str(error)
    return None


async def run(folder: Path, journal_id: str) -> None:
    conditions = Conditions()
    journal = await Journal.open(folder, journal_id=journal_id, conditions=conditions)
    token = await journal.begin_sweep()
    await journal.take([activity(1), activity(2)], sweep=token)
    await journal.end_sweep(token, last=2)
    await journal.start(1, Verb.RESTART)

    def seen() -> dict[str, Any]:
        return {
            "revision": journal.revision,
            "cursor": journal.cursor,
            "conditions": [condition.code for condition in conditions.all()],
        }

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    meanwhile = [
        {"error": await error_of(call), **seen()}
        for call in (
            journal.start(2, Verb.RESTART),
            journal.take([activity(3)], sweep=None),
            journal.finish(1, status=ReportStatus.COMPLETED),
        )
    ]
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    begun = await journal.start(2, Verb.RESTART) is not None
    print(json.dumps({"meanwhile": meanwhile, "begun": begun, "afterwards": seen()}))
    await journal.close()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), sys.argv[2]))
