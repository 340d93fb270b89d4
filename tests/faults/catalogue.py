"""Every class of faults, in the order of the table."""

from tests.faults import (
    away,
    bad_input,
    clock,
    disk,
    disk_damage,
    kills,
    kills_docker,
    kills_systemd,
    load,
    network,
    pauses,
    process_limits,
    state_machine,
    two_agents,
    unruly,
    watchdog,
)
from tests.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *kills.FAULTS,
    *kills_docker.FAULTS,
    *kills_systemd.FAULTS,
    *away.FAULTS,
    *network.FAULTS,
    *disk.FAULTS,
    *disk_damage.FAULTS,
    *pauses.FAULTS,
    *watchdog.FAULTS,
    *clock.FAULTS,
    *process_limits.FAULTS,
    *unruly.FAULTS,
    *two_agents.FAULTS,
    *load.FAULTS,
    *bad_input.FAULTS,
    *state_machine.FAULTS,
)
