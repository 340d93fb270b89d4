"""Doubles of Apache Iggy's two programs, started as programs: `[*IGGY_SERVER, …]`, `[*IGGY_CONNECTORS, …]`."""

import sys

_FOLDER = __file__.rpartition("/")[0]

IGGY_SERVER: list[str] = [sys.executable, "-I", "-S", _FOLDER, "iggy-server"]
"""The argv prefix of the stand-in for `iggy-server`; isolated, so that it starts fast and is nobody else's Python."""

IGGY_CONNECTORS: list[str] = [sys.executable, "-I", "-S", _FOLDER, "iggy-connectors"]
"""The argv prefix of the stand-in for `iggy-connectors`."""
