import http.client
import json
import socket
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.errors import JournalError, SocketError
from agent.local import server
from agent.local.server import LocalServer
from tests.local.conftest import ACTIVITY, Agent


def request(agent: Agent, target: str, method: str = "GET") -> tuple[int, dict[str, str], dict[str, Any]]:
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(agent.socket))
    connection.request(method, target)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, dict(response.headers), json.loads(body) if body else {}


def test_the_status_is_served_as_it_is_with_its_schema_version(agent: Agent) -> None:
    status, headers, body = request(agent, "/v1/status")
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert body == {"schema_version": 1, **agent.status}


def test_a_time_is_served_as_the_protocol_writes_it(agent: Agent) -> None:
    agent.status = {"link": {"last": datetime(2026, 1, 2, tzinfo=UTC)}}
    assert request(agent, "/v1/status")[2]["link"]["last"] == "2026-01-02T00:00:00Z"


def test_activities_are_listed_up_to_the_limit(agent: Agent) -> None:
    assert request(agent, "/v1/activities")[2]["items"] == [ACTIVITY]
    assert request(agent, "/v1/activities?limit=3")[0] == 200
    assert agent.limits == [server.DEFAULT_LIMIT, 3]


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1001", "1.0", "", "9" * 5000, "%31%00", "%D9%A1"])
def test_any_other_limit_is_refused(agent: Agent, limit: str) -> None:
    status, _, body = request(agent, f"/v1/activities?limit={limit}")
    assert (status, body["error"]["code"]) == (400, "invalid_limit")
    assert agent.limits == []


def test_one_activity_is_served_with_its_calls_and_evidence(agent: Agent) -> None:
    status, _, body = request(agent, f"/v1/activities/{ACTIVITY['id']}")
    assert status == 200
    assert body["id"] == ACTIVITY["id"]
    assert len(body["calls"]) == 2


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/activities/5", 404, "unknown_activity"),
        ("/v1/activities/0", 400, "invalid_id"),
        ("/v1/activities/x", 400, "invalid_id"),
        (f"/v1/activities/{2**63}", 400, "invalid_id"),
        ("/v1/nothing", 404, "unknown_path"),
        ("/", 404, "unknown_path"),
    ],
)
def test_what_is_not_there_is_said_as_json(agent: Agent, path: str, status: int, code: str) -> None:
    answer = request(agent, path)
    assert (answer[0], answer[2]["error"]["code"]) == (status, code)
    assert answer[2]["schema_version"] == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD"])
def test_only_get_is_answered(agent: Agent, method: str) -> None:
    status, headers, _ = request(agent, "/v1/status", method)
    assert (status, headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize("fault", [RuntimeError("secret inside"), None])
def test_a_fault_is_a_500_that_is_logged_and_the_server_goes_on(agent: Agent, fault: RuntimeError | None) -> None:
    agent.fault = fault
    agent.status = {"odd": object()}
    with capture_logs() as logs:
        status, _, body = request(agent, "/v1/status")
    assert (status, body["error"]["code"]) == (500, "internal")
    assert "secret inside" not in json.dumps(body)
    assert [entry["event"] for entry in logs] == ["local.failed"]
    agent.fault, agent.status = None, {"healthy": True}
    assert request(agent, "/v1/status")[0] == 200


def test_what_the_journal_cannot_tell_is_a_503_in_its_own_words(agent: Agent) -> None:
    agent.fault = JournalError("cannot read activity 5 in the journal: ValueError", hint="restart the agent")
    status, _, body = request(agent, "/v1/status")
    assert (status, body["error"]["code"], body["error"]["hint"]) == (503, "unavailable", "restart the agent")
    assert body["error"]["message"].startswith("cannot read activity 5")


def test_the_socket_is_for_its_group_and_nobody_else(agent: Agent) -> None:
    assert stat.S_IMODE(agent.socket.stat().st_mode) == 0o660
    assert stat.S_IMODE(agent.socket.parent.stat().st_mode) == 0o750
    assert list(agent.socket.parent.iterdir()) == [agent.socket]


def test_the_folder_of_somebody_else_keeps_its_mode(folder: Path) -> None:
    folder.chmod(0o755)
    agent = Agent(folder / "agent.sock").open()
    agent.end()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_closing_removes_the_socket_and_can_be_repeated(agent: Agent) -> None:
    agent.close()
    assert list(agent.socket.parent.iterdir()) == []
    agent.close()


def test_closing_minds_nothing_when_somebody_removed_the_socket(agent: Agent) -> None:
    agent.socket.unlink()
    with capture_logs() as logs:
        agent.close()
    assert logs == []


def test_the_socket_of_a_dead_agent_is_replaced(folder: Path) -> None:
    path = folder / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    before = path.stat().st_ino
    agent = Agent(path).open()
    assert request(agent, "/v1/status")[0] == 200
    agent.end()
    assert not path.exists()
    assert before


def test_the_socket_of_a_living_agent_is_not_stolen(agent: Agent) -> None:
    other = Agent(agent.socket)
    with pytest.raises(SocketError, match="another agent answers on it") as caught:
        other.open()
    assert caught.value.exit_code == 75
    other.end()
    assert request(agent, "/v1/status")[0] == 200


def test_a_busy_agent_counts_as_living(folder: Path) -> None:
    path = folder / "agent.sock"
    busy, waiting = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    busy.bind(str(path))
    busy.listen(0)
    waiting.connect(str(path))
    other = Agent(path)
    with pytest.raises(SocketError, match="another agent answers on it"):
        other.open()
    other.end()
    busy.close()
    waiting.close()
    assert path.exists()


def test_what_is_not_a_socket_is_left_alone(folder: Path) -> None:
    path = folder / "agent.sock"
    path.write_text("mine")
    other = Agent(path)
    with pytest.raises(SocketError, match="something else is there"):
        other.open()
    other.end()
    assert path.read_text() == "mine"


def test_a_place_that_cannot_be_used_is_named(folder: Path) -> None:
    (folder / "file").touch()
    other = Agent(folder / "file" / "agent.sock")
    with pytest.raises(SocketError, match=r"cannot open the socket .*: ") as caught:
        other.open()
    assert "agent.socket" in (caught.value.hint or "")
    other.end()


def test_a_socket_that_another_agent_took_over_is_not_removed(agent: Agent) -> None:
    agent.socket.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(agent.socket))
        agent.close()
        assert agent.socket.exists()


def test_a_socket_that_cannot_be_removed_is_logged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(folder / "agent.sock").open()

    def denied(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with capture_logs() as logs, monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", denied)
        agent.end()
    assert "local.socket_left" in [entry["event"] for entry in logs]


async def test_a_server_that_was_never_opened_can_be_closed(folder: Path) -> None:
    async def nothing(*_: object) -> Any:
        return None

    await LocalServer(folder / "s", status=nothing, activities=nothing, activity=nothing).close()
