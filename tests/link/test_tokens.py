"""Rotation: a new token is durable before it is used, and one that the Supervisor does not know strands nobody."""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agent.conditions import Conditions
from agent.errors import SupervisorError
from agent.journal import Journal
from agent.link import identity as identities
from agent.link.clock import SupervisorClock
from agent.link.identity import PreviousToken
from agent.link.tokens import Rotation, Tokens
from tests.fakes.supervisor import TOKEN, FakeSupervisor, altered, cut, plain, status
from tests.link.conftest import Node, a_node, eventually, gaps, quick, running, steady
from tests.link.test_identity import an_identity


@dataclass
class Rotating:
    node: Node
    tokens: Tokens
    state_dir: Path
    learned: list[str]

    def rotation(self, **settings: Any) -> Rotation:
        settings = {"backoff": quick(), "every": timedelta(days=30), **settings}
        return Rotation(
            self.node.client,
            self.tokens,
            clock=self.node.clock,
            standing=self.node.standing,
            conditions=self.node.conditions,
            **settings,
        )

    async def call(self) -> None:
        await self.node.client.activities(after=0, wait=0, limit=1)

    def kept(self) -> str:
        content = json.loads((self.state_dir / "identity.json").read_text())
        return str(content["node_token"])

    def kept_issue(self) -> datetime:
        content = json.loads((self.state_dir / "identity.json").read_text())
        return datetime.fromisoformat(content["token_issued_at"])


def keep(state_dir: Path, identity: identities.Identity) -> None:
    state_dir.mkdir()
    identities.save(state_dir, identity)


@asynccontextmanager
async def a_rotating_node(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, state_dir: Path, identity: identities.Identity
) -> AsyncIterator[Rotating]:
    await asyncio.to_thread(keep, state_dir, identity)
    learned: list[str] = []
    tokens = Tokens(identity, state_dir, clock=SupervisorClock(conditions), learned=learned.extend)
    async with a_node(
        supervisor,
        journal,
        conditions,
        token=tokens.current,
        token_refused=tokens.refused,
        token_accepted=tokens.accepted,
    ) as node:
        tokens._clock = node.clock
        yield Rotating(node, tokens, state_dir, learned)


@pytest.fixture
async def rotating(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, tmp_path: Path
) -> AsyncIterator[Rotating]:
    old = an_identity(token=TOKEN).model_copy(update={"token_issued_at": datetime.now(UTC) - timedelta(days=40)})
    async with a_rotating_node(supervisor, journal, conditions, tmp_path / "state", old) as made:
        yield made


def rotated(valid: timedelta = timedelta(hours=1), *, issued: timedelta = timedelta()) -> identities.Identity:
    previous = PreviousToken(token=SecretStr(TOKEN), valid_until=datetime.now(UTC) + valid)
    identity = an_identity(token="node-token-2", previous=previous)
    return identity.model_copy(update={"token_issued_at": datetime.now(UTC) - issued})


def sent(supervisor: FakeSupervisor) -> list[str]:
    """Return the tokens of the calls to list activities."""
    return [call.headers["Authorization"].removeprefix("Bearer ") for call in supervisor.calls("activities")]


async def test_a_token_that_is_due_is_exchanged_and_kept(rotating: Rotating, supervisor: FakeSupervisor) -> None:
    async with running(rotating.rotation().run()):
        await eventually(lambda: rotating.tokens.current() == "node-token-2")
        assert rotating.kept() == "node-token-2"
        assert "node-token-2" in rotating.learned
        await rotating.call()
    assert supervisor.calls("activities")[0].headers["Authorization"] == "Bearer node-token-2"


async def test_a_young_token_is_left_alone(rotating: Rotating, supervisor: FakeSupervisor) -> None:
    async with running(rotating.rotation(every=timedelta(days=50)).run()):
        await rotating.call()
    assert supervisor.count("token") == 0


async def test_a_token_becomes_due_while_the_agent_runs(rotating: Rotating, supervisor: FakeSupervisor) -> None:
    rotation = rotating.rotation()
    rotation._every = datetime.now(UTC) - rotating.tokens.identity.token_issued_at + timedelta(seconds=0.3)
    begun = time.monotonic()
    async with running(rotation.run()):
        await eventually(lambda: rotating.tokens.current() != TOKEN)
    assert supervisor.count("token") == 1
    assert supervisor.calls("token")[0].at - begun >= 0.25


@pytest.mark.parametrize("kept", [True, False], ids=["durably", "though it cannot be kept"])
async def test_a_token_issued_in_the_future_counts_as_issued_when_that_is_seen(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, tmp_path: Path, kept: bool
) -> None:
    ahead = datetime.now(UTC) + timedelta(days=4000)
    wrong = an_identity(token=TOKEN).model_copy(update={"token_issued_at": ahead})
    async with a_rotating_node(supervisor, journal, conditions, tmp_path / "state", wrong) as rotating:
        if not kept:
            shutil.rmtree(rotating.state_dir)
        await rotating.call()
        begun = time.monotonic()
        async with running(rotating.rotation(every=timedelta(seconds=1)).run()):
            await eventually(lambda: rotating.tokens.identity.token_issued_at < ahead)
            if kept:
                await eventually(lambda: rotating.kept_issue() < ahead)
            await eventually(lambda: supervisor.count("token") > 0)
        assert supervisor.calls("token")[0].at - begun >= 0.9 * 0.95


async def test_before_the_supervisors_time_is_known_a_token_is_not_judged(
    rotating: Rotating, supervisor: FakeSupervisor
) -> None:
    """A node that starts with its clock in the past would take every token for one from the future."""
    issued = datetime.now(UTC) + timedelta(days=100)
    rotating.tokens.identity = rotating.tokens.identity.model_copy(update={"token_issued_at": issued})
    await rotating.tokens.correct_issue()
    assert rotating.tokens.identity.token_issued_at == issued
    rotating.node.clock.learn(issued - timedelta(seconds=30), round_trip=0)
    await rotating.tokens.correct_issue()
    assert rotating.tokens.identity.token_issued_at == issued, "clocks differ a little"


async def test_a_token_that_cannot_be_kept_is_not_used(rotating: Rotating, supervisor: FakeSupervisor) -> None:
    shutil.rmtree(rotating.state_dir)
    async with running(rotating.rotation(backoff=steady(0.2)).run()):
        await eventually(lambda: "token_not_rotated" in rotating.node.conditions)
        assert rotating.tokens.current() == TOKEN
        await rotating.call()
        rotating.state_dir.mkdir()
        await eventually(lambda: rotating.tokens.current() != TOKEN)
        await eventually(lambda: "token_not_rotated" not in rotating.node.conditions)


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        cut(),
        plain(200, b"{}", "application/json"),
        altered(lambda answer: {**answer, "node_token": "two words"}),
    ],
    ids=["500", "lost answer", "nothing in it", "unusable"],
)
async def test_a_rotation_that_fails_is_tried_again_with_the_token_that_works(
    rotating: Rotating, supervisor: FakeSupervisor, fault: Any
) -> None:
    supervisor.script("token", fault)
    async with running(rotating.rotation(backoff=steady(0.2)).run()):
        await eventually(lambda: rotating.tokens.current() != TOKEN)
    assert gaps(supervisor, "token")[0] >= 0.19


async def test_a_fresh_token_that_is_refused_falls_back_and_is_exchanged(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, tmp_path: Path
) -> None:
    async with a_rotating_node(supervisor, journal, conditions, tmp_path / "state", rotated()) as rotating:
        # The store was put back from before the rotation: it knows only the token before.
        await rotating.call()
        await rotating.call()
        assert sent(supervisor) == ["node-token-2", TOKEN, TOKEN]
        assert "unauthorized" not in conditions
        supervisor._rotations = 5
        async with running(rotating.rotation().run()):
            await eventually(lambda: rotating.tokens.current() == "node-token-6")
        assert rotating.kept() == "node-token-6"
        previous = rotating.tokens.identity.previous_token
        assert previous is not None
        assert previous.token.get_secret_value() == TOKEN


async def test_a_rotation_that_falls_back_itself_keeps_the_token_that_worked(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, tmp_path: Path
) -> None:
    identity = rotated(issued=timedelta(days=40))
    async with a_rotating_node(supervisor, journal, conditions, tmp_path / "state", identity) as rotating:
        supervisor._rotations = 5
        async with running(rotating.rotation().run()):
            await eventually(lambda: rotating.tokens.current() == "node-token-6")
        previous = rotating.tokens.identity.previous_token
        assert previous is not None
        assert previous.token.get_secret_value() == TOKEN


async def test_a_supervisor_from_a_backup_older_than_the_rotation_knows_only_the_token_before(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, tmp_path: Path
) -> None:
    identity = rotated(timedelta(days=-20))
    async with a_rotating_node(supervisor, journal, conditions, tmp_path / "state", identity) as rotating:
        await rotating.call()
        assert sent(supervisor) == ["node-token-2", TOKEN]
        supervisor._rotations = 5
        async with running(rotating.rotation().run()):
            await eventually(lambda: rotating.tokens.current() == "node-token-6")
        assert rotating.kept() == "node-token-6"
        assert not rotating.tokens.fell_back.is_set()


@pytest.mark.parametrize("valid", [timedelta(hours=1), timedelta(days=-20)], ids=["valid", "past its time"])
async def test_when_both_are_refused_it_is_said_and_each_round_costs_two_calls(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, tmp_path: Path, valid: timedelta
) -> None:
    async with a_rotating_node(supervisor, journal, conditions, tmp_path / "state", rotated(valid)) as rotating:
        supervisor.tokens.clear()
        async with running(rotating.rotation().run()):
            for _ in range(2):
                with pytest.raises(SupervisorError):
                    await rotating.call()
        assert sent(supervisor) == ["node-token-2", TOKEN] * 2
        assert rotating.tokens.current() == "node-token-2"
        assert supervisor.count("token") == 0, "a token that does not work cannot be exchanged"
        assert {condition.code for condition in conditions.all()} == {"unauthorized"}


async def test_a_second_try_that_meets_another_fault_says_nothing_about_the_token_before(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, tmp_path: Path
) -> None:
    async with a_rotating_node(supervisor, journal, conditions, tmp_path / "state", rotated()) as rotating:
        supervisor.script("activities", status(401), status(500))
        with pytest.raises(SupervisorError):
            await rotating.call()
        assert not rotating.tokens.fell_back.is_set()
        await rotating.call()
        assert sent(supervisor) == ["node-token-2", TOKEN, TOKEN]
        assert rotating.tokens.fell_back.is_set()


async def test_an_exchange_that_failed_and_is_not_needed_any_more_degrades_nothing(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, tmp_path: Path
) -> None:
    async with a_rotating_node(supervisor, journal, conditions, tmp_path / "state", rotated()) as rotating:
        supervisor.always("token", status(500))
        await rotating.call()
        async with running(rotating.rotation().run()):
            await eventually(lambda: "token_not_rotated" in conditions)
            # The Supervisor's newer store is back: it knows the newest token, and took the other one away.
            supervisor.tokens.clear()
            supervisor.tokens.add("node-token-2")
            with suppress(SupervisorError):
                await rotating.call()
            await rotating.call()
            await eventually(lambda: conditions.all() == [])
        assert rotating.tokens.current() == "node-token-2"


def test_a_token_that_was_exchanged_during_the_call_is_no_refusal(tmp_path: Path, conditions: Conditions) -> None:
    tokens = Tokens(an_identity(token=TOKEN), tmp_path, clock=SupervisorClock(conditions))
    assert tokens.refused("the one before")
    assert not tokens.refused(TOKEN)
