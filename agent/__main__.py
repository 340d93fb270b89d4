"""Let `python -m agent` be `iggy-agent`."""

import sys

from agent.cli import main

sys.exit(main())
