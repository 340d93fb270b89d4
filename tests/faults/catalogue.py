"""Every class of faults, in the order of the table."""

from tests.faults import away, bad_input, kills, kills_docker, kills_systemd
from tests.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *kills.FAULTS,
    *kills_docker.FAULTS,
    *kills_systemd.FAULTS,
    *away.FAULTS,
    *bad_input.FAULTS,
)
