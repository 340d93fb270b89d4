"""The HTTP API of the `iggy-connectors` double: health, statistics, each connector, and its restart."""

import os
from collections.abc import Callable
from typing import Any

from tests.standins import process_facts
from tests.standins.connector_files import Connector
from tests.standins.faults import Faults
from tests.standins.generation import Generation
from tests.standins.listening import Request, Response

_KINDS = {"sources": "source", "sinks": "sink"}


class ConnectorsApi:
    """Answers the HTTP requests of one connectors runtime.

    Args:
        generation: which Iggy it stands in for.
        faults: may put a connector in error, or keep `/health` from answering.
        api_key: what all but `/` and `/health` ask for; empty asks for nothing.
        connectors: all of them, the disabled ones too.
        restart: starts a connector anew and tells whether it runs.
    """

    def __init__(
        self,
        generation: Generation,
        faults: Faults,
        api_key: str,
        connectors: list[Connector],
        restart: Callable[[Connector], bool],
    ) -> None:
        self._generation = generation
        self._faults = faults
        self._api_key = api_key
        self._connectors = connectors
        self._restart = restart
        self._clock = process_facts.Clock()
        self._pages: dict[str, Callable[[], Response | None]] = {
            "/": lambda: Response.text("Connector Runtime API"),
            "/health": self._health,
            "/stats": lambda: Response.json(self._stats()),
            "/sources": lambda: Response.json([_info(one) for one in self._running("source")]),
            "/sinks": lambda: Response.json([_info(one) for one in self._running("sink")]),
        }

    def answer(self, request: Request) -> Response | None:
        """Answer one request; None leaves the caller without an answer."""
        if request.path not in {"/", "/health"} and self._api_key not in {"", request.headers.get("api-key")}:
            return Response(401)
        self._break_connectors()
        kind, *rest = request.path.removeprefix("/").split("/")
        if kind in _KINDS and rest:
            return self._answer_about(_KINDS[kind], rest[0], rest[1:], request)
        if request.path not in self._pages:
            return Response(404)
        if request.method not in {"GET", "HEAD"}:
            return Response(405, headers=(("allow", "GET,HEAD"),))
        return self._pages[request.path]()

    def _answer_about(self, kind: str, key: str, rest: list[str], request: Request) -> Response:
        connector = next((one for one in self._running(kind) if one.key == key), None)
        if connector is None:
            reason = f"{kind.capitalize()} not found with key: {key}"
            return Response.json({"code": f"{kind}_not_found", "reason": reason}, 404)
        if not rest:
            return Response.json({**_info(connector), "streams": connector.settings["streams"]})
        if rest != ["restart"]:
            return Response(404)
        if request.method != "POST":
            return Response(405, headers=(("allow", "POST"),))
        if self._restart(connector):
            return Response(204)
        connector.status, connector.error = "stopped", None
        return Response.json({"code": "invalid_configuration", "reason": connector.refusal}, 400)

    def _break_connectors(self) -> None:
        broken = self._faults.connectors_in_error()
        for connector in self._running():
            if connector.key in broken and connector.status == "running":
                connector.fail()

    def _running(self, kind: str | None = None) -> list[Connector]:
        return [one for one in self._connectors if one.enabled and kind in {None, one.kind}]

    def _health(self) -> Response | None:
        if self._faults.on("ping_hangs"):
            return None
        if self._faults.on("ping_503"):
            return Response(503)
        return Response.json({"status": "healthy"})

    def _stats(self) -> dict[str, Any]:
        counts = {}
        for plural, kind in _KINDS.items():
            counts[f"{plural}_total"] = sum(one.kind == kind for one in self._connectors)
            counts[f"{plural}_running"] = sum(one.status == "running" for one in self._running(kind))
        return {
            "connectors_runtime_version": self._generation.connectors_version,
            "connectors_runtime_version_semver": self._generation.connectors_semver,
            "process_id": os.getpid(),
            "cpu_usage": 0.0,
            "total_cpu_usage": process_facts.cpu_load(),
            "memory_usage": process_facts.memory_used(),
            "total_memory": process_facts.memory_total(),
            "available_memory": process_facts.memory_available(),
            "run_time": self._clock.run_time,
            "start_time": self._clock.start_time,
            **counts,
            "connectors": [self._stats_of(one) for one in self._running()],
        }

    def _stats_of(self, connector: Connector) -> dict[str, Any]:
        did, done = ("produced", "sent") if connector.kind == "source" else ("consumed", "processed")
        return {
            "key": connector.key,
            "name": connector.settings["name"],
            "connector_type": connector.kind,
            "version": self._generation.connectors_version,
            "version_semver": self._generation.connectors_semver,
            "status": connector.status,
            "enabled": connector.enabled,
            f"messages_{did}": connector.messages,
            f"messages_{done}": connector.messages,
            "errors": 0,
        }


def _info(connector: Connector) -> dict[str, Any]:
    info: dict[str, Any] = {
        "id": connector.number,
        "key": connector.key,
        "name": connector.settings["name"],
        "path": connector.path,
        "enabled": connector.enabled,
        "status": connector.status,
    }
    if connector.error is not None:
        info["last_error"] = {"message": connector.error[0], "timestamp": connector.error[1]}
    if "plugin_config_format" in connector.settings:
        info["plugin_config_format"] = connector.settings["plugin_config_format"]
    return info
