"""The HTTP API of the `iggy-server` double: health, statistics, sign-in."""

import os
from collections.abc import Callable

from tests.standins import listening, process_facts
from tests.standins.accounts import Accounts
from tests.standins.configuration import Table
from tests.standins.faults import Faults
from tests.standins.generation import Generation
from tests.standins.listening import Request, Response

_SECOND = 1_000_000


class ServerApi:
    """Answers the HTTP requests of one server."""

    def __init__(
        self,
        generation: Generation,
        accounts: Accounts,
        faults: Faults,
        clock: process_facts.Clock,
        config: Table,
        clients: Callable[[], int],
    ) -> None:
        self._generation = generation
        self._accounts = accounts
        self._faults = faults
        self._clock = clock
        self._config = config
        self._clients = clients
        self._requests = 0
        self._public: dict[tuple[str, str], listening.Handler] = {
            ("GET", "/ping"): self._ping,
            ("POST", "/users/login"): self._login,
            ("POST", "/personal-access-tokens/login"): self._login_with_token,
        }
        if generation.legacy:
            self._public["GET", "/"] = lambda _: Response.text("Iggy API")
            self._public["GET", "/metrics"] = self._metrics

    def answer(self, request: Request) -> Response | None:
        """Answer one request; None leaves the caller without an answer."""
        self._requests += 1
        method = "GET" if request.method == "HEAD" else request.method
        public = self._public.get((method, request.path))
        if public is not None:
            return public(request)
        allowed = [allow for allow, path in self._public if path == request.path]
        if allowed:
            return Response(405, headers=(("allow", "GET,HEAD" if allowed == ["GET"] else allowed[0]),))
        return self._answer_signed_in(method, request)

    def _answer_signed_in(self, method: str, request: Request) -> Response | None:
        if request.path == "/":
            return Response(404)
        refusal = self._refusal(request.headers.get("authorization"))
        if refusal is not None:
            return refusal
        signed_in: dict[tuple[str, str], listening.Handler] = {
            ("GET", "/stats"): lambda _: Response.json(self._stats()),
            ("GET", "/streams"): lambda _: Response.json(self._streams()),
            ("GET", "/clients"): lambda _: Response.json([]),
            ("POST", "/personal-access-tokens"): self._create_token,
        }
        if not self._generation.legacy:
            signed_in["GET", "/metrics"] = self._metrics
        answer = signed_in.get((method, request.path))
        return Response(404) if answer is None else answer(request)

    def _streams(self) -> list[dict[str, object]]:
        return [{"id": number, "name": name} for number, name in enumerate(self._accounts.streams)]

    def _refusal(self, authorization: str | None) -> Response | None:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme == "Bearer" and self._accounts.accepts(token):
            return None
        if self._generation.legacy:
            return Response(401)
        if scheme == "Bearer" and self._accounts.knows_personal_token(token):
            return None
        if scheme != "Bearer":
            return _problem(401, 77, "access_token_missing", "Access token is missing")
        return _problem(401, 40, "unauthenticated", "Unauthenticated")

    def _ping(self, _: Request) -> Response | None:
        if self._faults.on("ping_hangs"):
            return None
        if self._faults.on("ping_503"):
            return Response(503)
        return Response.text("pong")

    def _login(self, request: Request) -> Response:
        if request.headers.get("content-type") != "application/json":
            text = b"Expected request with `Content-Type: application/json`"
            return Response(415, text, "text/plain; charset=utf-8")
        given = request.json()
        if not isinstance(given, dict) or not {"username", "password"} <= given.keys():
            return Response(400, b"Failed to parse the request body as JSON", "text/plain; charset=utf-8")
        if not self._accounts.knows(given["username"], given["password"]):
            return _problem(400, 42, "invalid_credentials", "Invalid credentials")
        return Response.json(self._accounts.issue())

    def _login_with_token(self, request: Request) -> Response:
        given = request.json()
        if not isinstance(given, dict) or not self._accounts.knows_personal_token(given.get("token", "")):
            return _problem(404, 20, "resource_not_found", "Resource with key:  was not found.")
        return Response.json(self._accounts.issue())

    def _create_token(self, request: Request) -> Response:
        given = request.json()
        name = given.get("name", "") if isinstance(given, dict) else ""
        if not 3 <= len(name) <= 30:
            reason = "Invalid personal access token name"
            return _problem(400, 50, "invalid_personal_access_token_name", reason)
        return Response.json({"token": self._accounts.create_personal_token(name)})

    def _metrics(self, _: Request) -> Response:
        counted = {
            "http_requests": (self._requests, "counter", "_total"),
            "streams": (len(self._accounts.streams), "gauge", ""),
        }
        lines = []
        for name, (number, kind, suffix) in counted.items():
            lines += [f"# HELP {name} total count of {name}.", f"# TYPE {name} {kind}", f"{name}{suffix} {number}"]
        return Response.text("\n".join([*lines, "# EOF", ""]))

    def _stats(self) -> dict[str, object]:
        disk = os.statvfs(self._config["system"]["path"])
        system = os.uname()
        return {
            "process_id": os.getpid(),
            "cpu_usage": 0.0,
            "total_cpu_usage": process_facts.cpu_load(),
            "memory_usage": _kib(process_facts.memory_used()),
            "total_memory": _kib(process_facts.memory_total()),
            "available_memory": _kib(process_facts.memory_available()),
            "run_time": self._clock.run_time // _SECOND * _SECOND,
            "start_time": self._clock.start_time // _SECOND * _SECOND,
            "read_bytes": "0 B",
            "written_bytes": "0 B",
            "messages_size_bytes": "0 B",
            "streams_count": len(self._accounts.streams),
            "topics_count": 0,
            "partitions_count": 0,
            "segments_count": 0,
            "messages_count": 0,
            "clients_count": self._clients(),
            "consumer_groups_count": 0,
            "hostname": system.nodename,
            "os_name": system.sysname,
            "os_version": system.version,
            "kernel_version": system.release,
            "iggy_server_version": self._generation.server_version,
            "iggy_server_semver": self._generation.server_semver,
            "cache_metrics": {},
            "threads_count": process_facts.threads(),
            "free_disk_space": _kib(disk.f_bavail * disk.f_frsize),
            "total_disk_space": _kib(disk.f_blocks * disk.f_frsize),
        }


def _problem(status: int, number: int, code: str, reason: str) -> Response:
    return Response.json({"id": number, "code": code, "reason": reason, "field": None}, status)


def _kib(size: int) -> str:
    return f"{size // 1024} KiB"
