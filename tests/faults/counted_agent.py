"""The real agent, which also writes down how many tasks it has: `python -m tests.faults.counted_agent FILE run …`.

It forgets old activities each second instead of every ten minutes, so that a short run shows that its journal stays
small.
"""

import asyncio
import sys
from pathlib import Path

from agent import cli, daemon

EVERY = 0.2
FORGETS_EVERY = 1.0


async def _count(file: Path) -> None:
    while True:
        file.write_text(str(len(asyncio.all_tasks()) - 1))  # noqa: ASYNC240 - a few bytes, now and then
        await asyncio.sleep(EVERY)


def main() -> int:
    """Run the agent."""
    original = daemon.Daemon.run

    async def run(self: daemon.Daemon) -> None:
        counting = asyncio.create_task(_count(Path(sys.argv[1])))
        try:
            await original(self)
        finally:
            counting.cancel()

    setattr(daemon.Daemon, "run", run)  # noqa: B010 - replaced from outside
    daemon.PRUNE_EVERY = FORGETS_EVERY
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
