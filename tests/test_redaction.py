import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import redaction
from agent.redaction import MARKER, Redactor, config_secrets, is_secret_name, named_secrets

SECRET = "hunter2-hunter2"


@pytest.fixture
def redactor() -> Redactor:
    made = Redactor()
    made.add([SECRET])
    return made


@pytest.mark.parametrize(
    "text",
    [
        f"password={SECRET}",
        f"IGGY_ROOT_PASSWORD={SECRET} next",
        f'IGGY_ROOT_PASSWORD="{SECRET} with spaces" next',
        f"url=https://x/?api_key={SECRET}&page=1",
        f'{{"password": "{SECRET}"}}',
        f'{{"password": "with \\" quote {SECRET}"}}',
        f"{{'api-key': '{SECRET}'}}",
        '{\\"node_token\\": \\"' + SECRET + '\\"}',
        f"Authorization: Bearer {SECRET}",
        f"authorization: basic {SECRET}",
        f"ld-api-key: {SECRET}",
        f"iggy://iggy:{SECRET}@127.0.0.1:8090",
        f"https://{SECRET}@example.com/path",
        f"password: {SECRET}",
        f"enrollment_token = {SECRET}",
        f"IGGY_SYSTEM_ENCRYPTION_KEY={SECRET} next",
        f"encryption_key     = '{SECRET}'",
        f'private_key = "{SECRET} with spaces"',
        f'passphrase="{SECRET}"',
        f"passphrase: {SECRET}",
        f'"credentials": ["short", "{SECRET}"]',
        f"https://x/?token_type=bearer&access_token={SECRET}",
        f"postgres://u:p/{SECRET}@host",
        f"postgres://u:p@{SECRET}@host/db",
        f"postgres://u:p@a/{SECRET}@host",
        f"postgres://u:p#?{SECRET}@host",
        f"https://a@{SECRET}@host/x",
        f"nats://u:p@one,nats://u:{SECRET}@two",
    ],
)
def test_what_looks_like_a_secret_is_masked_without_being_known(text: str) -> None:
    masked = Redactor().text(text)
    assert SECRET not in masked
    assert MARKER in masked


@pytest.mark.parametrize(
    "text",
    [
        "cannot open the socket: another agent answers on it",
        "runtimes.connectors.probe.api_key: cannot be used: it is for runtime connectors",
        "enrollment token: expired",
        "https://supervisor.example.com/agent/v1/activities",
        "sent from root@node-1",
        "http://127.0.0.1:8080/ping?mail=a@b and http://[::1]:8080/a@b",
        '"sha256": "abcdef", "activity_id": 5, "key": "postgres", channel="token" seconds=1',
        '{"secret_keys": ["IGGY_ROOT_PASSWORD"]} secret_keys=["A"]',
        'token_file=/etc/token password-file: x access_token_expiry = "1 h"',
        "",
    ],
)
def test_ordinary_text_stays_the_same_object(text: str) -> None:
    assert Redactor().text(text) is text


def test_a_known_value_is_masked_wherever_it_turns_up(redactor: Redactor) -> None:
    assert redactor.text(f"before{SECRET}after") == f"before{MARKER}after"
    assert redactor.data([{"args": ("x", SECRET)}]) == [{"args": ["x", MARKER]}]


def test_a_short_value_is_masked_only_where_it_stands_alone() -> None:
    redactor = Redactor()
    redactor.add(["abcd", "abc"])
    assert redactor.text("abcd abcde x-abcd abc (abcd)") == f"{MARKER} abcde x-abcd abc ({MARKER})"


def test_words_that_are_everywhere_are_never_masked() -> None:
    redactor = Redactor()
    redactor.add(["iggy", "Connectors", "true"])
    assert redactor.text("iggy Connectors true") == "iggy Connectors true"


def test_the_longest_of_overlapping_values_is_masked_whole() -> None:
    redactor = Redactor()
    redactor.add(["longsecret"])
    redactor.add(["longsecret-longer"])
    assert redactor.text("longsecret-longer") == MARKER


def test_each_line_of_a_secret_is_masked_and_so_is_its_json_form() -> None:
    redactor = Redactor()
    redactor.add(['first line"\nsecond line ü'])
    assert redactor.text("second line ü") == MARKER
    assert redactor.text(json.dumps({"k": 'first line"\nsecond line ü'})) == json.dumps({"k": MARKER})


@pytest.mark.parametrize("url", ["postgres://{}@host/db", "postgres://{}@host:5432", "iggy://{}@127.0.0.1:8090"])
@pytest.mark.parametrize("credentials", ["u:p", "u:p/ss", "u:pa@ss", "u:p@a/s@s", "token", "u:"])
def test_of_a_url_the_host_stays_and_nothing_else_does(url: str, credentials: str) -> None:
    assert Redactor().text(f"at {url.format(credentials)} now") == f"at {url.format(MARKER)} now"


def test_a_redactor_can_have_a_marker_of_its_own() -> None:
    redactor = Redactor("***")
    redactor.add([SECRET])
    assert redactor.data({"password": "x", "a": f"{SECRET} http://u:p@h"}) == {
        "password": "***",
        "a": "*** http://***@h",
    }


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "node_token",
        "API_KEY",
        "apikey",
        "client-secret",
        "IGGY_ROOT_PASSWORD",
        "IGGY_SYSTEM_ENCRYPTION_KEY",
        "encryptionKey",
        "private_key",
        "PASSPHRASE",
        "credentials",
        "account_key",
        "api_keys",
        "IGGY_SECRET_KEYS",
        "token_file.password",
    ],
)
def test_a_field_named_like_a_secret_is_masked_whole(key: str) -> None:
    for value in ("x", 12345, ["a", "b"], {"nested": "x"}):
        assert Redactor().data({key: value}) == {key: MARKER}
    assert Redactor().data({key: None}) == {key: None}
    assert Redactor().data({key: True}) == {key: True}
    assert is_secret_name(key)


@pytest.mark.parametrize(
    "name",
    [
        "sha256",
        "secret_keys",
        "key",
        "activity_id",
        "config_id",
        "channel",
        "password_file",
        "IGGY_PERSONAL_ACCESS_TOKEN_MAX_TOKENS_PER_USER",
        "access_token_expiry",
        "credentials_directory",
        "IGGY_HTTP_TLS_KEY_FILE",
    ],
)
def test_what_is_only_about_a_secret_stays(name: str) -> None:
    assert not is_secret_name(name)
    assert Redactor().data({name: ["x"]}) == {name: ["x"]}


def test_secrets_are_found_by_their_names_in_nested_data() -> None:
    content = {
        "system": {"encryption": {"enabled": True, "key": "one"}, "path": "plain"},
        "users": [{"name": "plain", "password": "two"}],
        "tokens": ["three", ["four"], 5],
        "secrets": {"any": {"thing": "six"}},
        "personal_access_token": {"cleaner": {"interval": "plain", "enabled": "plain"}},
    }
    assert sorted(named_secrets(content)) == ["four", "one", "six", "three", "two"]


def test_secrets_are_found_however_deep_they_are() -> None:
    content: dict[str, object] = {"password": "deep"}
    for _ in range(50_000):
        content = {"a": content}
    assert list(named_secrets(content)) == ["deep"]


def test_the_secrets_of_a_config_are_those_it_names_those_that_look_so_and_those_in_its_toml_files() -> None:
    values = {"IGGY_X": "one", "IGGY_ROOT_PASSWORD": "two", "IGGY_Y": "plain"}
    files = {
        "config.toml": "[http.jwt]\nencoding_secret = 'three'\n",
        "broken.toml": "password = ",
        "deep.toml": "a = " + "[" * 100_000,
        "notes.md": "password = 'plain'",
    }
    assert config_secrets(values, ["IGGY_X", "IGGY_GONE"], files) == {"one", "two", "three"}


def test_what_json_does_not_know_becomes_its_redacted_text(redactor: Redactor) -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    data = redactor.data(
        {"path": Path("/x"), "at": moment, "error": ValueError(SECRET), "raw": SECRET.encode(), "n": 1.5}
    )
    assert data == {"path": "/x", "at": str(moment), "error": MARKER, "raw": MARKER, "n": 1.5}
    assert redactor.data(ValueError()) == "ValueError()"
    assert redactor.data({SECRET: 1}) == {MARKER: 1}


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_redacted_data_can_always_be_written_as_json(value: object) -> None:
    redactor = Redactor()
    redactor.add([SECRET])
    assert SECRET not in json.dumps(redactor.data({"a": value, "b": SECRET}))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*"a9_-./@+ \t\n:='\"", "password", "Bearer", "basic", "://", "api_key", "é"])).map(
        "".join
    )
)
def test_text_that_is_passed_over_as_plain_has_nothing_that_looks_like_a_secret(text: str) -> None:
    searched = text
    for pattern, replacement in redaction._PATTERNS:
        searched = pattern.sub(replacement.format(marker=MARKER), searched)
    assert Redactor().text(text) == searched


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text(min_size=8))
def test_no_known_value_survives_in_any_text(around: str, secret: str) -> None:
    redactor = Redactor()
    redactor.add([secret])
    if len(secret.strip()) >= 8 and secret.lower() != "connectors":
        assert secret not in redactor.text(f"{around}{secret}{around}").replace(MARKER, "")


def test_a_megabyte_of_hostile_text_is_searched_in_time() -> None:
    redactor = Redactor()
    redactor.add([SECRET])
    begin = time.monotonic()
    texts = ["password" * 130_000, "a" * 1_000_000, 'token="' + "\\" * 1_000_000, "://" * 300_000, "x=" * 500_000]
    texts += ["token_" * 80_000, "token=[" * 80_000, "://a:b@" * 80_000, "://a:" + "b" * 1_000_000]
    for text in texts:
        redactor.text(text)
    assert time.monotonic() - begin < 20


def test_values_can_be_added_from_several_threads_at_once() -> None:
    redactor = Redactor()

    def add(n: int) -> None:
        for i in range(50):
            redactor.add([f"secret-{n}-{i}-x"])

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(4):
        for i in range(50):
            assert redactor.text(f"secret-{n}-{i}-x") == MARKER
