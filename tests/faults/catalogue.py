"""Every class of faults, in the order of the table."""

from tests.faults import away, kills
from tests.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *kills.FAULTS,
    *away.FAULTS,
)
