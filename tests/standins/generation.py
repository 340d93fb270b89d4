"""The two generations of Iggy that the stand-ins can be, chosen by `STANDIN_GENERATION`."""

from collections.abc import Mapping
from typing import NamedTuple


class Generation(NamedTuple):
    """What differs between the generations."""

    legacy: bool
    server_version: str
    server_semver: int
    connectors_version: str
    connectors_semver: int
    error: str
    drain: float


_GENERATIONS = {
    "0.8": Generation(
        legacy=True,
        server_version="0.8.0",
        server_semver=8000,
        connectors_version="0.4.0",
        connectors_semver=4000,
        error="ConfigurationError",
        drain=0.005,
    ),
    "0.9": Generation(
        legacy=False,
        server_version="0.9.0-edge.5",
        server_semver=9000,
        connectors_version="0.5.0-edge.4",
        connectors_semver=5000,
        error="Config",
        drain=0.06,
    ),
}


def chosen(environ: Mapping[str, str]) -> Generation:
    """Read the generation from the environment; 0.8 unless it says otherwise."""
    name = environ.get("STANDIN_GENERATION", "0.8")
    if name not in _GENERATIONS:
        msg = f"stand-in: cannot be of generation {name!r}: known are {', '.join(_GENERATIONS)}"
        raise SystemExit(msg)
    return _GENERATIONS[name]
