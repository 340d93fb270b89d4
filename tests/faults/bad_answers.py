"""Answers that no Supervisor should give, to the parser of the agent's protocol and to what takes them in.

Good messages with one to three fields changed (other types, huge and negative numbers, NaN, nests, keys twice, half
characters, NULs, long texts), cut, damaged, in other encodings: none of it may raise anything but the error that says
"not understood". Each activity that has an id and a sequence is answered, with a rejection when it does not parse, and
those that stand next to a bad one are taken in as if it were not there.
"""

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from agent.conditions import Conditions
from agent.errors import SupervisorError
from agent.journal import intake
from agent.journal.rows import Row, RowState, read_rows, stamp
from agent.journal.schema import migrate
from agent.link import enrolment, failures, transport
from agent.link.client import SupervisorClient, _outcomes
from agent.link.clock import SENSIBLE_YEARS, SupervisorClock
from agent.link.pace import SHORTEST_INTERVAL, Pace
from agent.link.parcel import pack
from agent.link.receiver import page_past
from agent.link.standing import Standing
from agent.local import views
from agent.protocol import (
    MAX_ID,
    MAX_POLL_WAIT,
    ActivityList,
    Enrollment,
    HeartbeatAnswer,
    ReasonCode,
    ReportStatus,
    TokenRotation,
)
from tests.faults import messages
from tests.faults.examples import each
from tests.faults.fault import Budget, Ground
from tests.faults.spoilt import TEXTS, bodies, scalars, spoilt, write
from tests.faults.tally import Tally

URL_OF_IT = URL("http://127.0.0.1:1/agent/v1/activities")
LONGEST_MESSAGE = 1000
"""Characters of an error's sentence; it is shown, logged, and said to the service manager."""
GOOD = [messages.activity(number) for number in (901, 902, 903)]


class Parser:
    """The agent's reading of answers, from the bytes on, without a network."""

    def __init__(self) -> None:
        conditions = Conditions()
        self.clock = SupervisorClock(conditions)
        self._client = SupervisorClient(
            url="http://127.0.0.1:1",
            ca_file=None,
            token=str,
            instance="one",
            revision=int,
            clock=self.clock,
            standing=Standing(conditions),
            conditions=conditions,
            version="1",
        )

    def read(self, body: bytes, parse: Any) -> Any:
        """Read an answer; None when it is refused as not understood."""
        headers = CIMultiDictProxy(CIMultiDict[str]())
        try:
            content = transport._parse(body, headers, URL_OF_IT)
            return self._client._understand(parse, transport.Answer(content, None, 0.01))
        except SupervisorError as error:
            judge_error(error)
            return None


def judge_error(error: SupervisorError) -> None:
    """Check that an error is one that can be shown, logged and told."""
    for text in (error.message, error.hint or ""):
        assert len(text) <= LONGEST_MESSAGE, f"a sentence of {len(text)} characters"
        assert text.isprintable(), text
    assert error.retry_after is None or error.retry_after >= 0


# --- activities


@dataclass(slots=True)
class Ledger:
    """A journal in memory, which forgets after each answer."""

    connection: sqlite3.Connection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self.connection.row_factory = sqlite3.Row
        migrate(self.connection)
        self.connection.execute("INSERT INTO journal VALUES (1, 'j', 0, 0, 0, 0, 0, ?)", (stamp(),))

    @contextmanager
    def taken(self, items: list[Any]) -> Iterator[dict[int, Row]]:
        """Take items in as a poll does, and hand out what the journal then has."""
        self.connection.execute("BEGIN")
        try:
            intake.take(self.connection, items, intake.Page())
            yield {row.id: row for row in read_rows(self.connection, "1 = 1")}
        finally:
            self.connection.execute("ROLLBACK")


def judge_items(ledger: Ledger, items: list[Any]) -> None:
    """Check what becomes of the items of one answer, in which `GOOD` stands whole."""
    page_past(items, 0)
    answerable = {item["id"] for item in items if isinstance(item, dict) and _is_id(item, "id", "sequence")}
    with ledger.taken(items) as rows:
        assert rows.keys() == answerable, "an activity with an id and a sequence is answered, and no other"
        for row in rows.values():
            _judge_row(row)
        for good in GOOD:
            row = rows[good["id"]]
            assert row.state is RowState.RECEIVED, "a good activity was held up by a bad one"
            assert row.activity is not None
            assert row.activity.model_dump(mode="json") == good


def _is_id(item: dict[str, Any], *names: str) -> bool:
    return all(type(item.get(name)) is int and 1 <= item[name] <= MAX_ID for name in names)


def _judge_row(row: Row) -> None:
    assert json.dumps([views.summary(row), views.detail(row)])
    if row.activity is not None:
        assert row.state is RowState.RECEIVED
        return
    assert (row.state, row.status) == (RowState.FINISHED, ReportStatus.REJECTED)
    assert row.reason is not None
    assert row.reason.code == ReasonCode.INVALID_ACTIVITY
    assert len(row.reason.message) <= LONGEST_MESSAGE
    assert json.loads(pack(row.report()).content)["activity_id"] == row.id


numbers = st.integers(1, 900)
spoilt_items = st.one_of(
    numbers.map(messages.activity).flatmap(spoilt), numbers.map(messages.reconfigure).flatmap(spoilt), scalars
)


def among(spoilt_ones: list[Any]) -> Any:
    """Make an answer in which good activities stand between bad ones."""
    items = [spoilt_ones[0], GOOD[0], *spoilt_ones[1:2], GOOD[1], *spoilt_ones[2:], GOOD[2]]
    return {"items": items, "last": 903, "revision": 0}


answers_with_bad_items = st.lists(spoilt_items, min_size=1, max_size=4).map(among)
whole_answers = bodies(
    st.builds(messages.activities, numbers.map(messages.activity), numbers.map(messages.reconfigure)).flatmap(spoilt)
)


# --- the rest of the protocol


def judge_pace(parser: Parser, body: bytes) -> None:
    """Check what a heartbeat's answer may do to the agent's pace and clock."""
    before = parser.clock.now()
    answer = parser.read(body, HeartbeatAnswer.model_validate)
    pace = Pace()
    if answer is not None:
        pace.learn(answer)
    assert SHORTEST_INTERVAL <= pace.heartbeat_interval <= 3600
    assert 0 <= pace.poll_wait <= MAX_POLL_WAIT
    assert parser.clock.now().year in SENSIBLE_YEARS
    assert answer is not None or abs(parser.clock.now() - before).total_seconds() < 5


def judge_results(parser: Parser, body: bytes) -> None:
    """Check that an answer to reports names ids only."""
    outcomes = parser.read(body, _outcomes)
    assert outcomes is None or all(1 <= activity_id <= MAX_ID for activity_id in outcomes)


def judge_enrollment(parser: Parser, body: bytes) -> None:
    """Check that what an enrolment gives can be kept and sent."""
    answer = parser.read(body, Enrollment.model_validate)
    if answer is None:
        return
    try:
        identity = enrolment._identity(answer, None, url="http://127.0.0.1:1", machine="m", journal_id="j")
    except SupervisorError as error:
        judge_error(error)
        return
    assert identity.model_dump_json().encode().isascii()
    assert identity.node_token.get_secret_value().isascii()


def judge_problem(body: bytes, status: int, retry_after: str, date: str) -> None:
    """Check that any error answer becomes an error that can be shown."""
    headers = {"Retry-After": retry_after, "Date": date}
    judge_error(failures.refused(status, headers, body, URL_OF_IT, ["hunter2"], now=lambda: datetime.now(UTC)))
    judge_error(failures.redirected(307, retry_after, URL_OF_IT))


dates = st.one_of(
    st.sampled_from(["", "0", "-1", "1e9", "9" * 5000, "Sun, 06 Nov 1994 08:49:37 GMT", "٣", "inf", *TEXTS]),
    st.builds(
        "{}, {} {} {} {}:{}:{} {}".format,
        st.sampled_from(["Sun", "x", ""]),
        *[st.integers(-1, 10**12), st.sampled_from(["Nov", "11", "Nov-94"])],
        *[st.integers(-(10**6), 10**12)] * 4,
        st.sampled_from(["GMT", "-0000", "+9999", "+99999999999999999999", "EST", ""]),
    ),
    st.text(max_size=40),
)


async def protocol(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Do the row."""
    await asyncio.to_thread(_protocol, ground, budget, tally)


def _protocol(ground: Ground, budget: Budget, tally: Tally) -> None:
    parser, ledger = Parser(), Ledger()

    def judge_list(body: bytes, *, readable: bool = False) -> None:
        answer = parser.read(body, ActivityList.model_validate)
        assert answer is not None or not readable, "a bad item makes the whole answer unreadable"
        if readable:
            judge_items(ledger, answer.items)
        elif answer is not None:
            with ledger.taken(answer.items) as rows:
                for row in rows.values():
                    _judge_row(row)

    while budget.more():
        once = Budget(0)
        each(
            *(ground, once, tally, "bad activities among good ones", answers_with_bad_items),
            lambda answer: judge_list(_written(answer), readable=True),
        )
        each(ground, Budget(0), tally, "a bad list of activities", whole_answers, judge_list)
        for story, message, judge in (
            ("a bad answer to a heartbeat", messages.pace, judge_pace),
            ("a bad answer to reports", lambda: messages.results(7, 8), judge_results),
            ("a bad answer to an enrolment", messages.enrollment, judge_enrollment),
            ("a bad answer to the exchange of a token", messages.rotation, _judge_rotation),
        ):
            spoilt_bodies = bodies(st.builds(message).flatmap(spoilt))
            each(ground, Budget(0), tally, story, spoilt_bodies, lambda body, judge=judge: judge(parser, body))  # type: ignore[misc]
        problems = st.tuples(bodies(spoilt(messages.problem())), st.sampled_from([400, 401, 429, 503]), dates, dates)
        each(ground, Budget(0), tally, "a bad error answer", problems, lambda problem: judge_problem(*problem))


def _judge_rotation(parser: Parser, body: bytes) -> None:
    parser.read(body, TokenRotation.model_validate)


def _written(answer: Any) -> bytes:
    return write(answer).encode()
