"""Every row of bad input; what each does is told where it is done."""

from tests.faults.bad_answers import protocol
from tests.faults.bad_calls import supervisor_api
from tests.faults.bad_conversation import conversation
from tests.faults.bad_files import files
from tests.faults.bad_requests import local_api
from tests.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    Fault("input.protocol", "bad answers, to the parser", protocol, 0.4),
    Fault("input.agent", "bad answers, to a whole agent", conversation, 0.5),
    Fault("input.local_api", "bad requests to the local API, bad answers of it", local_api, 0.4),
    Fault("input.settings", "bad settings, configs and journal rows", files, 0.4),
    Fault("input.supervisor_api", "bad calls to the Supervisor (schemathesis)", supervisor_api, 0.4, takes=15.0),
)
