"""Run one of the stand-ins: `python -I -S tests/standins iggy-server|iggy-connectors [ARGUMENT…]`."""

import sys
from pathlib import Path
from typing import NoReturn


def main() -> NoReturn:
    """Run the program named by the first argument with the rest of the arguments."""
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    program, arguments = sys.argv[1], sys.argv[2:]
    if program == "iggy-server":
        from tests.standins.iggy_server import main as run
    else:
        from tests.standins.iggy_connectors import main as run
    from tests.standins.ending import leave

    leave(run(arguments))


main()
