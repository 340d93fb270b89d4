"""The agent of `tests.e2e.crashing_agent`, with points around each call that changes something in the Docker Engine."""

import sys
from pathlib import Path

from agent import cli
from agent.protocol import DriverKind
from tests.e2e.crashing_agent import install


def main() -> int:
    """Run the agent with all points: FOLDER, then the agent's own arguments."""
    install(Path(sys.argv[1]), DriverKind.DOCKER)
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
