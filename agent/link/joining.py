"""How an agent that starts finds out who it is: it has an identity, or enrols with its credential, or waits for one."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from agent.conditions import Conditions
from agent.errors import AgentError, CaFileUnavailableError, IdentityUnavailableError, SupervisorError
from agent.link import identity as identities
from agent.link.backoff import Backoff
from agent.link.blocking import in_thread
from agent.link.enrolment import enroll
from agent.link.identity import Identity

log = structlog.get_logger(__name__)

NOT_ENROLLED = "not_enrolled"
"""Condition: this machine is not a node of any deployment."""
LOOK_FOR_IDENTITY = 1.0
"""Seconds between two looks for an identity that `iggy-agent enroll` may have made."""
FINAL = frozenset(range(400, 500)) - {408, 425, 429}
"""Statuses of refusals that do not go away by themselves: asked again after minutes, for a person may act there too."""
FOR_EVER = 410
"""Status of a node that was taken out of its deployment: its enrolment token will never serve again."""


class Joining:
    """Looks for an identity until there is one.

    Args:
        url: `supervisor.url`.
        ca_file: `supervisor.ca_file`.
        state_dir: The state folder.
        conditions: Shows why there is none, and what to do.
        credential: Reads the enrolment token that the agent was given, if any; blocking.
        credential_name: What the credential is called.
        learned: Told of the token before it is used, so that it can be kept out of logs.
        ready: Called when the agent is up, though not enrolled.
        backoff: Delays after failures.
        machine_id_file: machine-id(5).
    """

    def __init__(  # noqa: PLR0913 - all that it takes to become a node
        self,
        *,
        url: str,
        ca_file: Path | None,
        state_dir: Path,
        conditions: Conditions,
        credential: Callable[[], str | None],
        credential_name: str,
        learned: Callable[[Iterable[str]], None],
        ready: Callable[[], None],
        backoff: Backoff | None = None,
        machine_id_file: Path = identities.MACHINE_ID_FILE,
    ) -> None:
        self._url = url
        self._ca_file = ca_file
        self._state_dir = state_dir
        self._conditions = conditions
        self._credential = credential
        self._credential_name = credential_name
        self._learned = learned
        self._ready = ready
        self._backoff = backoff or Backoff(first=1.0, refusals=FINAL)
        self._machine_id_file = machine_id_file
        self._refused_token: str | None = None
        self._ask_at = -math.inf

    async def identity(self, stopping: asyncio.Event) -> Identity | None:
        """Return the identity as soon as there is one, or None when told to stop.

        However long the Supervisor is not asked, an identity that `iggy-agent enroll` made is seen within a second.

        Raises:
            IdentityError: It is damaged, or for another machine or node.
            SettingsError: The URL or the CA file cannot be used.
            JournalError: The journal cannot be made.
        """
        while not stopping.is_set():
            found = await in_thread(identities.load, self._state_dir, machine_id_file=self._machine_id_file)
            if found is not None:
                self._conditions.clear(NOT_ENROLLED)
                return found
            if await self._try():
                continue
            # Up, degraded, and to be enrolled: that is no reason for a service manager to start it again.
            self._ready()
            try:
                async with asyncio.timeout(min(LOOK_FOR_IDENTITY, max(0.0, self._ask_at - time.monotonic()))):
                    await stopping.wait()
            except TimeoutError:
                continue
        return None

    async def _try(self) -> bool:
        """Enrol with the credential if there is one, and if it is time; returns whether it is done."""
        try:
            token = await in_thread(self._credential)
        except (OSError, UnicodeDecodeError) as error:
            self._ask_at = time.monotonic() + LOOK_FOR_IDENTITY
            self._conditions.set(
                NOT_ENROLLED,
                f"cannot read the credential {self._credential_name}: {error}",
                hint="it has to be a text file that the agent's user may read; give it anew, and restart the agent",
            )
            return False
        if token is None:
            self._ask_at = time.monotonic() + LOOK_FOR_IDENTITY
            self._conditions.set(
                NOT_ENROLLED,
                "this machine is not a node of any deployment yet",
                hint="get a token of the Supervisor, and run `iggy-agent enroll` or give it as "
                f"{self._credential_name}",
            )
            return False
        if token == self._refused_token and time.monotonic() < self._ask_at:
            return False
        self._learned([token])
        try:
            await enroll(self._url, self._ca_file, token, self._state_dir, machine_id_file=self._machine_id_file)
        except (SupervisorError, IdentityUnavailableError, CaFileUnavailableError) as error:
            self._failed(token, error)
            return False
        return True

    def _failed(self, token: str, error: AgentError) -> None:
        self._refused_token = token
        status = error.status if isinstance(error, SupervisorError) else None
        if status == FOR_EVER:
            seconds, further = math.inf, "it is not asked again before the agent has another token, or is restarted"
        else:
            seconds = self._backoff.failed(error)
            further = "it is asked again after minutes; with another token, or after a restart, at once"
        self._ask_at = time.monotonic() + seconds
        hint = error.hint
        if status in FINAL:
            hint = f"{hint or 'look at the log of the Supervisor'}; {further}"
        self._conditions.set(NOT_ENROLLED, error.message, hint=hint)
        log.warning("enroll.failed", cause=error.message, retry_in=None if seconds == math.inf else round(seconds, 1))
