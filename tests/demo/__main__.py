"""`python -m tests.demo [--keep]`: exit code 0 only if everything was as it should be."""

import signal
import sys


def main() -> int:
    """Run the demo and return its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until something is started, Ctrl-C simply ends this
    from tests.demo.playing import main as play

    return play()


sys.exit(main())
