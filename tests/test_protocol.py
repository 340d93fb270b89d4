import contextlib
import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from agent import protocol
from agent.protocol import (
    MAX_ID,
    Action,
    Activity,
    ActivityList,
    Config,
    Heartbeat,
    HeartbeatAnswer,
    Report,
    ReportBatch,
    Verb,
    config_sha256,
    format_time,
)

NOW = "2026-03-16T12:00:00Z"
ACTIVITY = {
    "id": 610809900976570889,
    "sequence": 7,
    "runtime": "iggy",
    "action": "restart",
    "config": None,
    "author_id": 608123456789012345,
    "created_at": NOW,
    "expires_at": None,
}

EARLIEST, LATEST = (datetime.fromisoformat(day) for day in ("1970-01-02", "2200-01-01"))  # naive, as hypothesis wants

ids = st.integers(1, MAX_ID)
texts = st.text(st.characters(exclude_categories=["Cs"]))
moments = st.datetimes(timezones=st.timezones(), min_value=EARLIEST, max_value=LATEST)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
MODELS = [model for model in vars(protocol).values() if isinstance(model, type) and issubclass(model, protocol.Message)]


def models(model: type[BaseModel], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(model, **fields)


configs = models(
    Config,
    id=ids,
    kind=texts,
    name=texts,
    version=ids,
    runtime_version=st.none() | texts,
    values=st.dictionaries(texts, texts, max_size=3),
    secret_keys=st.lists(texts, max_size=2),
    files=st.lists(models(protocol.ConfigFile, path=texts, content=texts), max_size=2),
    sha256=texts,
)
activities = models(
    Activity,
    id=ids,
    sequence=ids,
    runtime=texts,
    action=texts,
    config=st.none() | configs,
    author_id=st.none() | ids,
    created_at=moments,
    expires_at=st.none() | moments,
)
reports = models(
    Report,
    activity_id=ids,
    status=st.sampled_from(protocol.ReportStatus),
    started_at=st.none() | moments,
    finished_at=moments,
    changed=st.booleans(),
    recovered=st.booleans(),
    reason=st.none() | models(protocol.Reason, code=texts, message=texts, hint=st.none() | texts),
    evidence=st.dictionaries(texts, json_values, max_size=3),
)
runtimes = models(
    protocol.RuntimeStatus,
    runtime=st.sampled_from(protocol.RuntimeName),
    driver=st.sampled_from(protocol.DriverKind),
    state=st.none() | st.sampled_from(protocol.RuntimeState),
    started_at=st.none() | moments,
    warnings=st.lists(texts, max_size=2),
)
heartbeats = models(
    Heartbeat,
    sent_at=moments,
    agent=models(
        protocol.AgentStatus,
        version=texts,
        started_at=moments,
        journal=models(protocol.JournalStatus, waiting=st.integers(0), unreported=st.integers(0)),
        conditions=st.lists(texts, max_size=2),
    ),
    node=models(protocol.NodeStatus, hostname=texts),
    runtimes=st.lists(runtimes, max_size=2),
)


@settings(max_examples=150, deadline=None)
@given(activities | reports | heartbeats)
def test_what_is_written_is_read_back_the_same(message: BaseModel) -> None:
    assert type(message).model_validate_json(message.model_dump_json()) == message
    assert type(message).model_validate(json.loads(message.model_dump_json())) == message


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(MODELS), json_values | st.dictionaries(st.sampled_from(sorted(ACTIVITY)), json_values))
@example(Activity, {**ACTIVITY, "config": {"id": 1}})
def test_any_json_is_either_a_message_or_a_validation_error(model: type[BaseModel], value: Any) -> None:
    with contextlib.suppress(ValidationError):
        assert isinstance(model.model_validate(value), model)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | texts)
def test_any_bytes_are_either_a_message_or_a_validation_error(body: bytes | str) -> None:
    with pytest.raises(ValidationError):
        Activity.model_validate_json(body)


def test_an_unknown_field_is_ignored_and_an_unknown_word_is_kept_to_be_answered() -> None:
    activity = Activity.model_validate({**ACTIVITY, "runtime": "novel", "action": "dance", "priority": "high"})
    assert (activity.runtime, activity.action) == ("novel", "dance")
    assert "priority" not in activity.model_dump()


@pytest.mark.parametrize("wrong", [0, -1, MAX_ID + 1, 2**64, 2**200, True, False, 1.0, 1.5, "1", "", None, [1], {}])
@pytest.mark.parametrize("field", ["id", "sequence"])
def test_an_id_is_a_whole_number_from_1_to_63_bits_and_nothing_like_it(field: str, wrong: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Activity.model_validate({**ACTIVITY, field: wrong})
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]
    with pytest.raises(ValidationError):
        Activity.model_validate_json(json.dumps({**ACTIVITY, field: wrong}))


@pytest.mark.parametrize("number", [1, 2**53 + 1, MAX_ID])
def test_an_id_beyond_what_a_double_can_hold_stays_exact(number: int) -> None:
    text = json.dumps({**ACTIVITY, "id": number})
    assert Activity.model_validate_json(text).id == number
    assert f'"id":{number},' in Activity.model_validate_json(text).model_dump_json()


@pytest.mark.parametrize("naive", ["2026-03-16T12:00:00", "2026-03-16", "yesterday", "", None])
def test_a_time_without_its_zone_is_refused(naive: object) -> None:
    with pytest.raises(ValidationError):
        Activity.model_validate({**ACTIVITY, "created_at": naive})


def test_times_become_utc_and_are_written_with_a_z() -> None:
    activity = Activity.model_validate({**ACTIVITY, "created_at": "2026-03-16T14:00:00.250+02:00"})
    assert activity.created_at == datetime(2026, 3, 16, 12, 0, 0, 250_000, tzinfo=UTC)
    assert activity.created_at.tzinfo is UTC
    assert json.loads(activity.model_dump_json())["created_at"] == "2026-03-16T12:00:00.250000Z"
    assert format_time(datetime(2026, 3, 16, 14, tzinfo=timezone(timedelta(hours=2)))) == NOW


def test_a_message_cannot_be_changed_and_an_error_shows_no_value() -> None:
    activity = Activity.model_validate(ACTIVITY)
    with pytest.raises(ValidationError, match="frozen"):
        activity.id = 2  # type: ignore[misc] # that is the point
    with pytest.raises(ValidationError) as caught:
        protocol.EnrollRequest.model_validate({"enrollment_token": ["hunter2"], "hostname": "x" * 256})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("verb", [Verb.START, Verb.STOP, Verb.RESTART])
def test_a_plain_action_is_parsed_and_spelt_the_same(verb: Verb) -> None:
    action = Action.parse(str(verb))
    assert action == Action(verb)
    assert str(action) == verb


@settings(max_examples=60, deadline=None)
@given(ids)
@example(1)
@example(MAX_ID)
def test_a_reconfigure_carries_its_config_id(config_id: int) -> None:
    action = Action.parse(f"reconfigure:{config_id}")
    assert action == Action(Verb.RECONFIGURE, config_id)
    assert str(action) == f"reconfigure:{config_id}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Start",
        "start ",
        " stop",
        "restart\n",
        "restart:1",
        "reconfigure",
        "reconfigure:",
        "reconfigure:0",
        "reconfigure:01",
        "reconfigure:-1",
        "reconfigure:+1",
        "reconfigure:1.0",
        "reconfigure:\u0661",
        "reconfigure:1\n",
        "reconfigure:1:2",
        f"reconfigure:{MAX_ID + 1}",
        f"reconfigure:{10**30}",
        "x" * 100_000,
    ],
)
def test_anything_else_is_no_action_and_the_message_says_what_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown action .* expected start, stop, restart or reconfigure:") as caught:
        Action.parse(text)
    assert len(str(caught.value)) < 250


@settings(max_examples=60, deadline=None)
@given(texts)
def test_no_text_breaks_the_parsing_of_an_action(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert str(Action.parse(text)) == text


def test_the_checksum_is_of_the_canonical_json() -> None:
    content: dict[str, Any] = {
        "kind": "iggy",
        "runtime_version": None,
        "values": {"IGGY_B": "ü", "IGGY_A": '"'},
        "secret_keys": ["IGGY_B"],
        "files": [{"path": "config.toml", "content": "x = 1\n"}],
    }
    # Computed once with sha256sum over the JSON of the definition in docs/protocol.md.
    text = (
        '{"files":[{"content":"x = 1\\n","path":"config.toml"}],"kind":"iggy","runtime_version":null,'
        '"secret_keys":["IGGY_B"],"values":{"IGGY_A":"\\"","IGGY_B":"ü"}}'
    )
    assert config_sha256(**content) == hashlib.sha256(text.encode()).hexdigest()
    config = Config(id=1, name="x", version=1, sha256="", **content)
    assert config.compute_sha256() == config_sha256(**content)


@settings(max_examples=60, deadline=None)
@given(configs)
def test_the_checksum_does_not_depend_on_the_order_of_the_values(config: Config) -> None:
    turned = config.model_copy(update={"values": dict(reversed(list(config.values.items())))})
    assert turned.compute_sha256() == config.compute_sha256()
    other = config.model_copy(update={"kind": config.kind + "x"})
    assert other.compute_sha256() != config.compute_sha256()


def test_the_items_of_an_answer_are_kept_raw() -> None:
    answer = ActivityList.model_validate({"items": [ACTIVITY, 5, None, {"id": True}], "last": 9, "revision": 2})
    assert answer.items == [ACTIVITY, 5, None, {"id": True}]
    assert ActivityList.model_validate({"items": []}).last is None
    with pytest.raises(ValidationError):
        ActivityList.model_validate({"items": [], "last": -1})


def test_a_batch_of_reports_is_bounded() -> None:
    report = Report(activity_id=1, status=protocol.ReportStatus.COMPLETED, finished_at=datetime.now(UTC))
    assert len(ReportBatch(reports=[report] * 100).reports) == 100
    for wrong in ([], [report] * 101):
        with pytest.raises(ValidationError):
            ReportBatch(reports=wrong)


@pytest.mark.parametrize("field", ["heartbeat_interval", "poll_wait"])
@pytest.mark.parametrize("wrong", [-1, 4000, float("nan"), "soon", None])
def test_the_pace_of_the_supervisor_is_bounded(field: str, wrong: object) -> None:
    good = {"server_time": NOW, "heartbeat_interval": 30, "poll_wait": 55}
    assert HeartbeatAnswer.model_validate(good).poll_wait == 55
    with pytest.raises(ValidationError):
        HeartbeatAnswer.model_validate({**good, field: wrong})


def test_every_word_of_the_protocol_is_small_letters_and_said_once() -> None:
    enums = [one for one in vars(protocol).values() if isinstance(one, type) and issubclass(one, StrEnum)]
    for enum in enums:
        for word in enum:
            assert word == word.lower()
            assert word.value == word.name.lower()


@pytest.mark.parametrize(
    "value",
    [
        0,
        1_700_000_000,
        1.5,
        True,
        "1700000000",
        "2026-03-16",
        "2026-03-16T12:00Z",
        "2026-03-16_12:00:00Z",
        "20260316T120000Z",
    ],
)
def test_a_time_that_is_not_written_as_rfc_3339_is_refused(value: Any) -> None:
    """A lenient reader would make seconds since 1970, or midnight, of it."""
    with pytest.raises(ValidationError, match="a time is a text such as"):
        Activity.model_validate({**ACTIVITY, "created_at": value})


@pytest.mark.parametrize(
    "value", ["2026-03-16T12:00:00Z", "2026-03-16t14:00:00.000000001+02:00", "2026-03-16 12:00:00z"]
)
def test_a_time_as_rfc_3339_allows_it_is_read(value: str) -> None:
    assert format_time(Activity.model_validate({**ACTIVITY, "created_at": value}).created_at) == NOW
