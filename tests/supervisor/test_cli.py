"""The commands: what they print, also while `serve` runs, and what they say when they cannot."""

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest

from supervisor.cli import main
from tests.supervisor.rig import Json, Rig, command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Json:
    code, out, err = run(capsys, *arguments, "--format", "json")
    assert code == 0, err
    return json.loads(out)


def test_from_nothing_to_a_node_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(tmp_path / "new" / "folder")]
    deployment = run_json(capsys, "deployments", "create", *data, "--name", "demo", "--tenant-id", "1")
    assert (deployment["name"], deployment["tenant_id"]) == ("demo", 1)
    assert run_json(capsys, "deployments", "list", *data) == {"items": [deployment]}
    key = run_json(capsys, "keys", "create", *data, "--deployment", str(deployment["id"]), "--days", "30")
    assert key["api_key"].startswith("isk_")
    assert key["permissions"] == ["deployment:config:manage", "deployment:manage"]
    (listed,) = run_json(capsys, "keys", "list", *data)["items"]
    assert "api_key" not in listed
    assert listed["revoked_at"] is None
    assert run_json(capsys, "keys", "revoke", *data, str(key["id"])) == {"id": key["id"], "revoked": True}
    assert run_json(capsys, "keys", "list", *data)["items"][0]["revoked_at"]
    token = run_json(capsys, "enrollment-tokens", "create", *data, "--deployment", str(deployment["id"]))
    assert token["enrollment_token"].startswith("iet_")
    assert run_json(capsys, "nodes", "list", *data) == {"items": []}


def test_text_is_the_default_and_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(tmp_path)]
    _, out, _ = run(capsys, "deployments", "create", *data, "--name", "demo")
    assert "name: demo\n" in out
    _, out, _ = run(capsys, "deployments", "list", *data)
    header, row = out.splitlines()
    assert header.split() == ["ID", "TENANT_ID", "DIVISION_ID", "ENVIRONMENT_ID", "NAME", "CREATED_AT"]
    assert "demo" in row
    assert run(capsys, "nodes", "list", *data)[1] == "none\n"


def test_the_store_is_for_its_owner_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    run(capsys, "deployments", "create", "--data", str(folder))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "supervisor.db").stat().st_mode & 0o777 == 0o600


async def test_commands_work_while_it_serves(rig: Rig) -> None:
    agent = await rig.agent()
    await agent.beat()
    await rig.supervisor.save_heartbeats()
    made = await asyncio.gather(
        *(command(rig.data, "deployments", "create", "--name", str(number)) for number in range(5)),
        *(rig.dispatch() for _ in range(5)),
    )
    assert len({item["id"] for item in made[:5]} | {items[0]["id"] for items in made[5:]}) == 10
    token = await command(rig.data, "enrollment-tokens", "create", "--deployment", str(rig.deployment["id"]))
    await rig.agent(token=token["enrollment_token"])
    first, second = await command(rig.data, "nodes", "list", "--deployment", str(rig.deployment["id"]))
    assert (first["id"], first["runtimes"]) == (agent.node_id, {"iggy": "running"})
    assert first["heartbeat_age"] >= 0
    assert (second["heartbeat_age"], second["runtimes"]) == (None, {})
    assert await command(rig.data, "nodes", "list", "--deployment", str(made[0]["id"])) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["keys", "create", "--deployment", "5"], "cannot find deployment 5"),
        (["enrollment-tokens", "create", "--deployment", "5"], "cannot find deployment 5"),
        (["keys", "revoke", "5"], "cannot revoke API key 5"),
        (["nodes", "remove", "5"], "cannot remove node 5"),
    ],
)
def test_what_is_not_there_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    run(capsys, "deployments", "create", "--data", str(tmp_path))
    code, out, err = run(capsys, *arguments, "--data", str(tmp_path))
    assert (code, out) == (1, "")
    assert text in err
    assert "hint: " in err


def test_a_missing_store_is_explained_and_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "nodes", "list", "--data", str(tmp_path / "missing"))
    assert code == 78
    assert "there is no store in" in err
    assert not (tmp_path / "missing").exists()


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = run(capsys, "deployments", "create", "--data", str(tmp_path / "file" / "data"))
    assert code == 78
    assert "cannot open" in err
    assert "not a directory" in err


def test_a_file_that_is_no_store_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "supervisor.db").write_bytes(b"not a database, but long enough to be looked at" * 30)
    code, _, err = run(capsys, "nodes", "list", "--data", str(tmp_path))
    assert (code, "cannot open" in err) == (78, True)


def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "deployments", "create", "--data", str(tmp_path))
    connection = sqlite3.connect(tmp_path / "supervisor.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    code, _, err = run(capsys, "deployments", "create", "--data", str(tmp_path))
    assert code == 78
    assert "schema version 99" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["deployments"],
        ["deployments", "create"],
        ["keys", "create", "--data", "x", "--permission", "root"],
        ["keys", "create", "--data", "x", "--days", "366"],
        ["enrollment-tokens", "create", "--data", "x", "--deployment", "0"],
        ["nodes", "remove", "--data", "x", "99999999999999999999"],
        ["serve", "--data", "x", "--activity-ttl", "0"],
        ["serve", "--data", "x", "--activity-ttl", "soon"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: iggy-supervisor" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["serve"], ["keys", "create"], ["nodes", "remove"]])
def test_help_has_an_example(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*arguments, "--help"])
    assert exit_info.value.code == 0
    assert "example" in capsys.readouterr().out
