"""Every row of bad input; what each does is told where it is done."""

from tests.faults.bad_answers import protocol
from tests.faults.bad_files import files
from tests.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    Fault("input.protocol", "bad answers, to the parser", protocol, 0.5),
    Fault("input.settings", "bad settings, configs and journal rows", files, 0.5),
)
