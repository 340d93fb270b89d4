"""The agent of `tests.e2e.crashing_agent`, with points around each call that changes something in the Docker Engine."""

import sys
from pathlib import Path

from agent import cli
from agent.runtimes.engine import Engine
from tests.e2e.crashing_agent import Points, install, wrap_async

CHANGING = ("create", "connect", "start", "stop", "unpause", "set_restart_policy", "rename", "remove")


def main() -> int:
    """Run the agent with all points: FOLDER, then the agent's own arguments."""
    folder = Path(sys.argv[1])
    install(folder)
    points = Points(folder)
    for call in CHANGING:
        wrap_async(points, Engine, call, f"engine.{call}")
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
