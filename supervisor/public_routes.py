"""The table of the public API's calls."""

from agent.protocol import MAX_ID, RuntimeName
from supervisor.auth import Permission
from supervisor.idempotency import MAX_KEY_CHARACTERS
from supervisor.problems import Code
from supervisor.public_api import PublicApi
from supervisor.requests import DEFAULT_RESULTS, MAX_PAGE, MAX_RESULTS
from supervisor.routes import Link, Parameter, Route, whole_number
from supervisor.schema import (
    NAME_PATTERN,
    Activities,
    ActivityDetail,
    ActivityPage,
    ConfigBody,
    ConfigItem,
    ConfigPage,
    DispatchBody,
    EmptyBody,
    EnrollmentTokenBody,
    EnrollmentTokenItem,
    NodePage,
)

KEY = (
    Code.API_KEY_MISSING,
    Code.API_KEY_INVALID,
    Code.API_KEY_EXPIRED,
    Code.PERMISSION_DENIED,
    Code.UNKNOWN_DEPLOYMENT,
    Code.INVALID_PARAMETER,
)
POST = (
    *KEY,
    Code.INVALID_JSON,
    Code.INVALID_BODY,
    Code.BODY_TOO_LARGE,
    Code.REQUEST_TIMEOUT,
    Code.IDEMPOTENCY_ERROR,
    Code.IDEMPOTENT_REQUEST_IN_PROGRESS,
)
RUNTIMES = {"type": "string", "enum": [name.value for name in RuntimeName]}
DEPLOYMENT = Parameter("deployment_id", "path", "The deployment.", whole_number(1, MAX_ID), required=True)
SAME = "$request.path.deployment_id"
KIND = Parameter("kind", "path", "The runtime that the config is for.", RUNTIMES, required=True)
PAGING = (
    Parameter("page", "query", "Which page, from 1.", whole_number(1, MAX_PAGE, 1)),
    Parameter("results", "query", "Items per page.", whole_number(1, MAX_RESULTS, DEFAULT_RESULTS)),
)
IDEMPOTENCY = Parameter(
    "idempotency-key",
    "header",
    "The same key and request within ten minutes is answered again, and done once.",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS},
)


def public_routes(api: PublicApi) -> list[Route]:
    """List the calls of users."""
    return [*_activity_routes(api), *_node_routes(api), *_config_routes(api)]


def _activity_routes(api: PublicApi) -> list[Route]:
    return [
        Route(
            "POST",
            "/deployments/{deployment_id}/activities/{runtime}/{action}",
            api.dispatch,
            "dispatch",
            "Dispatch an action to all nodes, or to those listed: all of them or none",
            "activities",
            Activities,
            (*POST, Code.UNKNOWN_RUNTIME, Code.UNKNOWN_ACTION, Code.UNKNOWN_NODE, Code.UNKNOWN_CONFIG, Code.NO_NODES),
            status=202,
            permission=Permission.MANAGE,
            body=DispatchBody,
            body_required=False,
            parameters=(
                DEPLOYMENT,
                Parameter("runtime", "path", "The runtime to act on.", RUNTIMES, required=True),
                Parameter(
                    "action",
                    "path",
                    "What to do; a reconfigure names the config that it applies.",
                    {"type": "string", "pattern": "^(start|stop|restart|reconfigure:[1-9][0-9]{0,18})$"},
                    required=True,
                ),
                IDEMPOTENCY,
            ),
            links={
                "first": Link("getActivity", {"deployment_id": SAME, "activity_id": "$response.body#/items/0/id"}),
                "list": Link("listActivities", {"deployment_id": SAME}),
            },
        ),
        Route(
            "GET",
            "/deployments/{deployment_id}/activities",
            api.list_activities,
            "listActivities",
            "List activities, newest first",
            "activities",
            ActivityPage,
            KEY,
            permission=Permission.READ,
            parameters=(DEPLOYMENT, *PAGING),
        ),
        Route(
            "GET",
            "/deployments/{deployment_id}/activities/{activity_id}",
            api.get_activity,
            "getActivity",
            "One activity, with what its node reported",
            "activities",
            ActivityDetail,
            (*KEY, Code.UNKNOWN_ACTIVITY),
            permission=Permission.READ,
            parameters=(
                DEPLOYMENT,
                Parameter("activity_id", "path", "The activity.", whole_number(1, MAX_ID), required=True),
            ),
        ),
    ]


def _node_routes(api: PublicApi) -> list[Route]:
    return [
        Route(
            "GET",
            "/deployments/{deployment_id}/nodes",
            api.list_nodes,
            "listNodes",
            "List nodes, each with its latest heartbeat",
            "nodes",
            NodePage,
            KEY,
            permission=Permission.READ,
            parameters=(DEPLOYMENT, *PAGING),
        ),
        Route(
            "POST",
            "/deployments/{deployment_id}/enrollment-tokens",
            api.create_enrollment_token,
            "createEnrollmentToken",
            "Make a token that turns one machine into a node",
            "nodes",
            EnrollmentTokenItem,
            POST,
            status=201,
            permission=Permission.MANAGE,
            body=EnrollmentTokenBody,
            body_required=False,
            parameters=(DEPLOYMENT, IDEMPOTENCY),
        ),
    ]


def _config_routes(api: PublicApi) -> list[Route]:
    return [
        Route(
            "POST",
            "/deployments/{deployment_id}/configs/{kind}",
            api.create_config,
            "createConfig",
            "Save a new version of a named config",
            "configs",
            ConfigItem,
            (*POST, Code.UNKNOWN_KIND, Code.CONFIG_TOO_LARGE),
            status=201,
            permission=Permission.CONFIG_MANAGE,
            body=ConfigBody,
            parameters=(DEPLOYMENT, KIND, IDEMPOTENCY),
            answer_headers=("ld-config",),
            links={
                "versions": Link(
                    "listConfigVersions",
                    {"deployment_id": SAME, "kind": "$response.body#/kind", "name": "$response.body#/name"},
                ),
                "activate": Link(
                    "activateConfig",
                    {"deployment_id": SAME, "kind": "$response.body#/kind", "config_id": "$response.body#/id"},
                ),
                "reconfigure": Link(
                    "dispatch",
                    {
                        "deployment_id": SAME,
                        "runtime": "$response.body#/kind",
                        "action": "reconfigure:{$response.body#/id}",
                    },
                ),
            },
        ),
        Route(
            "GET",
            "/deployments/{deployment_id}/configs/{kind}",
            api.list_configs,
            "listConfigs",
            "List the newest version of each named config, and the active one",
            "configs",
            ConfigPage,
            (*KEY, Code.UNKNOWN_KIND),
            permission=Permission.CONFIG_READ,
            parameters=(DEPLOYMENT, KIND, *PAGING),
        ),
        Route(
            "GET",
            "/deployments/{deployment_id}/configs/{kind}/{name}/versions",
            api.list_versions,
            "listConfigVersions",
            "List every version of a named config, newest first",
            "configs",
            ConfigPage,
            (*KEY, Code.UNKNOWN_KIND, Code.UNKNOWN_CONFIG),
            permission=Permission.CONFIG_READ,
            parameters=(
                DEPLOYMENT,
                KIND,
                Parameter(
                    "name", "path", "The config's name.", {"type": "string", "pattern": NAME_PATTERN}, required=True
                ),
                *PAGING,
            ),
        ),
        Route(
            "POST",
            "/deployments/{deployment_id}/configs/{kind}/{config_id}/activate",
            api.activate_config,
            "activateConfig",
            "Make a config the active one of its kind; it reaches no node before a reconfigure",
            "configs",
            ConfigItem,
            (*POST, Code.UNKNOWN_KIND, Code.UNKNOWN_CONFIG),
            permission=Permission.CONFIG_MANAGE,
            body=EmptyBody,
            body_required=False,
            parameters=(
                DEPLOYMENT,
                KIND,
                Parameter("config_id", "path", "The config.", whole_number(1, MAX_ID), required=True),
                IDEMPOTENCY,
            ),
            answer_headers=("ld-config",),
        ),
    ]
