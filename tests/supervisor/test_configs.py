"""Configs: versions that never change, one active per kind, secrets that never come back in clear."""

import json

import pytest

from agent.protocol import MAX_CONFIG_BYTES, Config
from tests.supervisor.rig import Rig, command, heartbeat, report

SECRET = "correct horse battery staple"


async def test_each_version_has_an_id_of_its_own_and_a_header_that_says_it(rig: Rig) -> None:
    answer = await rig.call("POST", "configs/iggy", json_body={"name": "a", "values": {"IGGY_A": "1"}})
    first = answer.ok(201)
    assert answer.headers["ld-config"] == str(first["id"])
    second = await rig.config(name="a", values={"IGGY_A": "2"})
    other = await rig.config(name="b")
    assert [first["version"], second["version"], other["version"]] == [1, 2, 1]
    assert first["id"] < second["id"] < other["id"]
    assert list(first) == [
        "id",
        "deployment_id",
        "author_id",
        "kind",
        "name",
        "version",
        "primary",
        "runtime_version",
        "values",
        "secret_keys",
        "files",
        "created_at",
    ]
    versions = (await rig.call("GET", "configs/iggy/a/versions")).ok()
    assert [item["id"] for item in versions["items"]] == [second["id"], first["id"]]
    assert versions["items"][1] == first
    (await rig.call("GET", "configs/iggy/c/versions")).problem(404, "unknown_config")
    (await rig.call("GET", "configs/connectors/a/versions")).problem(404, "unknown_config")


async def test_one_config_of_a_kind_is_active_and_activating_touches_no_node(rig: Rig) -> None:
    agent = await rig.agent()
    first = await rig.config(name="a", activate=True)
    assert first["primary"] is True
    second = await rig.config(name="a")
    other = await rig.config("connectors", activate=True)
    listed = (await rig.call("GET", "configs/iggy")).ok()
    assert [(item["id"], item["primary"]) for item in listed["items"]] == [(second["id"], False), (first["id"], True)]
    answer = await rig.call("POST", f"configs/iggy/{second['id']}/activate")
    assert (answer.ok()["primary"], answer.headers["ld-config"]) == (True, str(second["id"]))
    listed = (await rig.call("GET", "configs/iggy")).ok()
    assert [(item["id"], item["primary"]) for item in listed["items"]] == [(second["id"], True)]
    assert (await rig.call("GET", "configs/connectors")).ok()["items"][0]["id"] == other["id"]
    assert (await agent.poll())["items"] == []


async def test_only_a_config_of_this_kind_and_deployment_can_be_activated(rig: Rig) -> None:
    config = await rig.config()
    (await rig.call("POST", "configs/iggy/5/activate")).problem(404, "unknown_config")
    (await rig.call("POST", f"configs/connectors/{config['id']}/activate")).problem(404, "unknown_config")
    rig.deployment = await command(rig.data, "deployments", "create")
    (await rig.call("POST", f"configs/iggy/{config['id']}/activate")).problem(404, "unknown_config")
    (await rig.call("POST", "configs/iggy/x/activate")).problem(400, "invalid_parameter")


async def test_the_agent_gets_exactly_the_version_named_secrets_and_files_and_checksum(rig: Rig) -> None:
    agent = await rig.agent()
    await rig.config(name="a", values={"IGGY_A": "old"})
    config = await rig.config(
        name="a",
        values={"IGGY_A": "grüße", "IGGY_PW": SECRET},
        secret_keys=["IGGY_PW"],
        files=[{"path": "config.toml", "content": "a = 1\n"}],
        runtime_version="0.8.0",
    )
    await rig.config(name="a", values={"IGGY_A": "newer"}, activate=True)
    await rig.dispatch(f"iggy/reconfigure:{config['id']}")
    sent = Config.model_validate((await agent.poll())["items"][0]["config"])
    assert sent.values == {"IGGY_A": "grüße", "IGGY_PW": SECRET}
    assert sent.files[0].model_dump() == {"path": "config.toml", "content": "a = 1\n"}
    assert (sent.id, sent.kind, sent.name, sent.version, sent.runtime_version) == (
        config["id"],
        "iggy",
        "a",
        2,
        "0.8.0",
    )
    assert sent.sha256 == sent.compute_sha256()


async def test_no_answer_of_the_public_api_holds_a_secret(rig: Rig) -> None:
    agent = await rig.agent()
    values = {"IGGY_X": SECRET, "IGGY_ROOT_PASSWORD": SECRET[::-1], "IGGY_HTTP_ENABLED": "true"}
    files = [{"path": "config.toml", "content": f"key = '{SECRET}'"}]
    body = {"name": "a", "values": values, "secret_keys": ["IGGY_X"], "files": files, "activate": True}
    created = await rig.call("POST", "configs/iggy", json_body=body, idempotency_key="k")
    assert created.ok(201)["values"] == {
        "IGGY_X": "********",
        "IGGY_ROOT_PASSWORD": "********",
        "IGGY_HTTP_ENABLED": "true",
    }
    assert created.body["secret_keys"] == ["IGGY_ROOT_PASSWORD", "IGGY_X"]
    assert created.body["files"] == [{"path": "config.toml", "size": len(files[0]["content"])}]
    config_id = created.body["id"]
    (item,) = await rig.dispatch(f"iggy/reconfigure:{config_id}")
    leak = {"code": "start_failed", "message": f"cannot start iggy: password {SECRET} is wrong"}
    await agent.report(report(item["id"], status="rejected", reason=leak, evidence={"log": [f"{SECRET}!"]}))
    runtime = heartbeat()["runtimes"][0] | {"message": f"said {SECRET}", "warnings": [SECRET]}
    await agent.beat(runtimes=[runtime])
    answers = [
        created,
        await rig.call("POST", "configs/iggy", json_body=body, idempotency_key="k"),
        await rig.call("POST", f"configs/iggy/{config_id}/activate"),
        await rig.call("GET", "configs/iggy"),
        await rig.call("GET", "configs/iggy/a/versions"),
        await rig.call("GET", "activities"),
        await rig.call("GET", f"activities/{item['id']}"),
        await rig.call("GET", "nodes"),
    ]
    for answer in answers:
        assert answer.status < 300
        assert SECRET.encode() not in answer.raw
        assert SECRET[::-1].encode() not in answer.raw
    assert b"password ******** is wrong" in answers[-2].raw


async def test_a_secret_inside_of_another_value_does_not_come_back(rig: Rig) -> None:
    values = {
        "IGGY_ROOT_PASSWORD": "s3cretpass99",
        "IGGY_X_URL": "http://u:s3cretpass99@h/",
        "IGGY_Y_URL": "postgres://u:pa/s@s-of-this-url@h/db",
        "IGGY_Z": "--api-key s3cretpass99 --key from-the-file",
        "IGGY_SYSTEM_ENCRYPTION_KEY": "pin-1",
        "IGGY_W": "pin-1 is not pin-10",
        "IGGY_PATH": "/data",
    }
    files = [{"path": "config.toml", "content": "[system.encryption]\nkey = 'from-the-file'\n"}]
    created = await rig.call("POST", "configs/iggy", json_body={"name": "a", "values": values, "files": files})
    shown = {
        "IGGY_ROOT_PASSWORD": "********",
        "IGGY_X_URL": "http://********@h/",
        "IGGY_Y_URL": "postgres://********@h/db",
        "IGGY_Z": "--api-key ******** --key ********",
        "IGGY_SYSTEM_ENCRYPTION_KEY": "********",
        "IGGY_W": "******** is not pin-10",
        "IGGY_PATH": "/data",
    }
    assert created.ok(201)["values"] == shown
    later = await rig.config(name="b", values={"IGGY_V": "was s3cretpass99"})
    assert later["values"] == {"IGGY_V": "was ********"}
    for answer in (
        await rig.call("GET", "configs/iggy"),
        await rig.call("GET", "configs/iggy/a/versions"),
        await rig.call("POST", f"configs/iggy/{created.body['id']}/activate"),
    ):
        assert answer.status == 200
        for secret in (b"s3cretpass99", b"from-the-file", b"of-this-url", b"pin-1 "):
            assert secret not in answer.raw


async def test_a_config_is_bounded_as_the_agent_would_get_it(rig: Rig) -> None:
    agent = await rig.agent()
    small = await rig.config(name="edge", values={"IGGY_A": ""})
    await rig.dispatch(f"iggy/reconfigure:{small['id']}")
    sent = (await agent.poll())["items"][0]["config"]
    overhead = len(json.dumps(sent, separators=(",", ":"), ensure_ascii=False).encode())
    fits = await rig.config(name="edge", values={"IGGY_A": "x" * (MAX_CONFIG_BYTES - overhead)})
    assert fits["version"] == 2
    body = {"name": "edge", "values": {"IGGY_A": "x" * (MAX_CONFIG_BYTES - overhead + 1)}}
    (await rig.call("POST", "configs/iggy", json_body=body)).problem(413, "config_too_large")
    assert (await rig.call("GET", "configs/iggy/edge/versions")).ok()["total_results"] == 2


@pytest.mark.parametrize("content", ["a = " + "9" * 5_000, "a." * 200_000 + "a = 1"], ids=["digits", "dots"])
async def test_toml_that_is_hard_to_read_is_for_the_agent_to_judge(rig: Rig, content: str) -> None:
    """Looking for its secrets must neither fail nor hold up everybody else."""
    made = await rig.config(files=[{"path": "config.toml", "content": content}])
    assert made["files"] == [{"path": "config.toml", "size": len(content)}]
