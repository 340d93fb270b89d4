"""The table of the agent's calls."""

from agent.protocol import (
    INSTANCE_HEADER,
    MAX_ID,
    MAX_POLL_WAIT,
    MAX_REVISION,
    REVISION_HEADER,
    ActivityList,
    Enrollment,
    EnrollRequest,
    Heartbeat,
    HeartbeatAnswer,
    ReportBatch,
    ReportResults,
    TokenRotation,
)
from supervisor.agent_api import MAX_INSTANCE_CHARACTERS, MAX_ITEMS, AgentApi
from supervisor.problems import Code
from supervisor.routes import Parameter, Route, whole_number

IDENTITY = (
    Code.NODE_TOKEN_INVALID,
    Code.NODE_TOKEN_EXPIRED,
    Code.IDENTITY_IN_USE,
    Code.DECOMMISSIONED,
    Code.INVALID_PARAMETER,
)
BODY = (Code.INVALID_JSON, Code.INVALID_BODY, Code.BODY_TOO_LARGE, Code.REQUEST_TIMEOUT)
HEADERS = (
    Parameter(
        INSTANCE_HEADER,
        "header",
        "Random per start of the agent; the newest first-seen one speaks for the node.",
        {"type": "string", "minLength": 1, "maxLength": MAX_INSTANCE_CHARACTERS},
        required=True,
    ),
    Parameter(
        REVISION_HEADER,
        "header",
        "The revision of the agent's journal; grows with every activity that is begun.",
        whole_number(0, MAX_REVISION),
        required=True,
    ),
)


def agent_routes(api: AgentApi) -> list[Route]:
    """List the calls of agents."""
    return [
        Route(
            "POST",
            "/agent/v1/enroll",
            api.enroll,
            "enroll",
            "Make a machine a node; the same machine may ask again, and gets a fresh token",
            "agent",
            Enrollment,
            (
                Code.ENROLLMENT_TOKEN_INVALID,
                Code.ENROLLMENT_TOKEN_EXPIRED,
                Code.ENROLLMENT_TOKEN_USED,
                Code.DECOMMISSIONED,
                *BODY,
            ),
            status=201,
            body=EnrollRequest,
            answer_headers=("ld-node",),
        ),
        Route(
            "GET",
            "/agent/v1/activities",
            api.activities,
            "poll",
            "What this node has to do; held until there is something",
            "agent",
            ActivityList,
            IDENTITY,
            parameters=(
                *HEADERS,
                Parameter("after", "query", "Only sequences above this one.", whole_number(0, MAX_ID, 0)),
                Parameter(
                    "wait",
                    "query",
                    "Seconds to hold the call.",
                    {"type": "number", "minimum": 0, "maximum": MAX_POLL_WAIT, "default": 0},
                ),
                Parameter("limit", "query", "Items at most.", whole_number(1, MAX_ITEMS, MAX_ITEMS)),
            ),
        ),
        Route(
            "POST",
            "/agent/v1/reports",
            api.reports,
            "report",
            "Report on activities; the first report on each stays for ever",
            "agent",
            ReportResults,
            (*IDENTITY, Code.EVIDENCE_TOO_LARGE, *BODY),
            body=ReportBatch,
            parameters=HEADERS,
        ),
        Route(
            "POST",
            "/agent/v1/heartbeats",
            api.heartbeats,
            "heartbeat",
            "Say how the node and its runtimes are; the answer sets the pace",
            "agent",
            HeartbeatAnswer,
            (*IDENTITY, *BODY),
            body=Heartbeat,
            parameters=HEADERS,
        ),
        Route(
            "POST",
            "/agent/v1/token",
            api.token,
            "rotateToken",
            "Get a fresh node token; the previous one goes on working for a while",
            "agent",
            TokenRotation,
            IDENTITY,
            parameters=HEADERS,
        ),
    ]
