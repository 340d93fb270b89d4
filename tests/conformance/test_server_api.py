"""What iggy-server says over HTTP of itself, and to whom."""

import re
import time

import pytest

from tests.conformance.programs import PASSWORD, Programs, Server, ask

SECOND = 1_000_000
STATS = """
process_id cpu_usage total_cpu_usage memory_usage total_memory available_memory run_time start_time read_bytes
written_bytes messages_size_bytes streams_count topics_count partitions_count segments_count messages_count
clients_count consumer_groups_count hostname os_name os_version kernel_version iggy_server_version
iggy_server_semver cache_metrics threads_count free_disk_space total_disk_space
"""


@pytest.fixture
def legacy(programs: Programs) -> bool:
    return programs.legacy


def test_the_index_and_the_metrics_without_a_token(iggy: Server, legacy: bool) -> None:
    index, metrics = ask(iggy.http, "/"), ask(iggy.http, "/metrics")
    if legacy:
        assert index == (200, "text/plain; charset=utf-8", "Iggy API")
        assert metrics.status == 200
        assert re.search(r"^http_requests_total \d+$", metrics.body, re.MULTILINE)
    else:
        assert (index.status, index.body) == (404, "")
        assert metrics.status == 401


@pytest.mark.parametrize("token", [None, "nonsense"])
def test_the_stats_need_a_token(iggy: Server, legacy: bool, token: str | None) -> None:
    answer = ask(iggy.http, "/stats", headers={} if token is None else {"authorization": f"Bearer {token}"})
    assert answer.status == 401
    if legacy:
        assert answer.body == ""
    else:
        assert answer.json()["code"] == ("access_token_missing" if token is None else "unauthenticated")


def test_ping_takes_get_only(iggy: Server) -> None:
    assert ask(iggy.http, "/ping", method="POST").status == 405


def test_a_path_that_does_not_exist(iggy: Server) -> None:
    assert ask(iggy.http, "/nonsense", headers=iggy.sign_in()).status == 404


def test_a_wrong_password_is_refused(iggy: Server) -> None:
    body = {"username": "iggy", "password": "wrong"}
    answer = ask(iggy.http, "/users/login", method="POST", body=body)
    assert answer.status == 400
    assert answer.json() == {"id": 42, "code": "invalid_credentials", "reason": "Invalid credentials", "field": None}


def test_a_login_gives_a_token_with_its_expiry(iggy: Server) -> None:
    body = {"username": "iggy", "password": PASSWORD}
    answer = ask(iggy.http, "/users/login", method="POST", body=body).json()
    assert answer["user_id"] == 0
    assert answer["access_token"]["expiry"] > time.time()


def test_the_stats_identify_the_process_and_its_start(server: Server, legacy: bool) -> None:
    run = server.started()
    stats = ask(server.http, "/stats", headers=server.sign_in()).json()
    assert stats["process_id"] == run.pid
    assert stats["start_time"] % SECOND == 0
    assert stats["run_time"] % SECOND == 0
    assert abs(time.time() * SECOND - stats["start_time"]) < 60 * SECOND
    assert stats["iggy_server_version"].startswith("0.8." if legacy else "0.9.")
    assert stats["iggy_server_semver"] // 1000 == (8 if legacy else 9)


def test_the_stats_have_the_known_fields(iggy: Server) -> None:
    stats = ask(iggy.http, "/stats", headers=iggy.sign_in()).json()
    assert stats.keys() >= set(STATS.split())


def test_sizes_in_the_stats_are_strings_with_a_unit(iggy: Server) -> None:
    stats = ask(iggy.http, "/stats", headers=iggy.sign_in()).json()
    for name in ("memory_usage", "total_memory", "available_memory", "messages_size_bytes", "free_disk_space"):
        assert re.fullmatch(r"[\d.]+ [KMGT]?i?B", stats[name]), name


def test_a_restart_shows_as_another_process(server: Server) -> None:
    first = server.started()
    before = ask(server.http, "/stats", headers=server.sign_in()).json()["process_id"]
    first.stop()
    server.started()
    after = ask(server.http, "/stats", headers=server.sign_in()).json()["process_id"]
    assert before != after


def test_an_access_token_dies_with_the_process_and_a_personal_one_does_not(server: Server, legacy: bool) -> None:
    run = server.started()
    signed_in = server.sign_in()
    body = {"name": "probe", "expiry": 0}
    personal = ask(server.http, "/personal-access-tokens", method="POST", body=body, headers=signed_in).json()["token"]
    run.stop()
    server.started()
    assert ask(server.http, "/stats", headers=signed_in).status == 401
    exchanged = ask(server.http, "/personal-access-tokens/login", method="POST", body={"token": personal})
    assert exchanged.status == 200
    bearer = {"authorization": f"Bearer {exchanged.json()['access_token']['token']}"}
    assert ask(server.http, "/stats", headers=bearer).status == 200
    direct = ask(server.http, "/stats", headers={"authorization": f"Bearer {personal}"})
    assert direct.status == (401 if legacy else 200)
