"""`python -m supervisor` is `iggy-supervisor`."""

import sys

from supervisor.cli import main

sys.exit(main())
