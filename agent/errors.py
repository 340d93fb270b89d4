"""What can go wrong, as one small tree.

    AgentError                 everything the agent raises on purpose; says what, why, and the next step
    ├── Rejection              becomes the report of an activity: `rejected`, with a code
    ├── SettingsError          the settings, or the arguments, are wrong                        exit 78
    │   └── CaFileUnavailableError    supervisor.ca_file cannot be read just now                exit 74
    ├── IdentityError          the node's identity is missing, foreign, or refused              exit 78
    │   └── IdentityUnavailableError  it cannot be read or written just now                     exit 74
    ├── JournalError           the journal cannot be opened, read or written                    exit 74
    │   ├── JournalDamagedError its file is damaged: the agent ends, the next one begins anew   exit 74
    │   ├── JournalInUseError  another agent holds the state folder                             exit 75
    │   └── JournalFullError   the disk has no room for it                                      exit 74
    ├── SupervisorError        the Supervisor could not be asked, or said no (link/client.py)   exit 69
    ├── SocketError            the agent's own socket cannot be opened, or another agent has it exit 75
    └── UnavailableError       the agent itself could not be asked (the local socket)           exit 3
        └── SocketDeniedError  this user may not ask it                                         exit 77

The text of each is "cannot X: cause", in lower case; `hint` is the next step for whoever reads it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:  # `iggy-agent status` handles these errors, and is to start without pydantic
    from agent.protocol import Reason, ReasonCode


class AgentError(Exception):
    """An error that tells its own story when printed: what could not be done, why, and what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} (hint: {self.hint})"


class Rejection(AgentError):  # noqa: N818 - it is the word of the protocol: an activity is rejected
    """An action that cannot be carried out, or was not; becomes the activity's report.

    Args:
        code: Stable, for programs.
        message: "cannot X: cause", for people.
        hint: The next step.
        evidence: What was seen; merged into the report's evidence.
    """

    def __init__(
        self,
        code: "ReasonCode",
        message: str,
        *,
        hint: str | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.evidence: dict[str, Any] = dict(evidence or {})

    def reason(self) -> "Reason":
        """Return the reason as it travels in a report."""
        from agent.protocol import Reason  # noqa: PLC0415 - see TYPE_CHECKING above

        return Reason(code=self.code, message=self.message, hint=self.hint)

    def __str__(self) -> str:
        return f"{self.code}: {super().__str__()}"


class SettingsError(AgentError):
    """The settings or the arguments are wrong; names the file and the key."""

    exit_code = 78


class CaFileUnavailableError(SettingsError):
    """The file with the Supervisor's CA cannot be read just now; that may pass by itself."""

    exit_code = 74


class IdentityError(AgentError):
    """The node has no identity, or one that is not for this machine."""

    exit_code = 78


class IdentityUnavailableError(IdentityError):
    """The identity, or the machine's, cannot be read or written just now; that may pass by itself."""

    exit_code = 74


class JournalError(AgentError):
    """The journal cannot be opened, read or written; nothing new is begun."""

    exit_code = 74


class JournalDamagedError(JournalError):
    """The journal's file turned out damaged while it was in use: no trying again mends that, only a new one."""


class JournalInUseError(JournalError):
    """Another agent holds the state folder."""

    exit_code = 75


class JournalFullError(JournalError):
    """The disk is full: it was not written, or is not to be begun because its result could not be."""


class SupervisorError(AgentError):
    """The Supervisor could not be asked, or refused.

    Args:
        message: "cannot X: cause", for people.
        hint: The next step.
        status: The HTTP status of its answer; None when there was none that could be used.
        code: The stable word of its problem document.
        retry_after: Seconds that it asked to wait.
        newest_instance: The name of the agent that it serves instead of this one.
    """

    exit_code = 69

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        status: int | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        newest_instance: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.newest_instance = newest_instance


class SocketError(AgentError):
    """The agent's own socket cannot be opened, or another agent answers on it."""

    exit_code = 75


class UnavailableError(AgentError):
    """The running agent could not be asked over its socket."""

    exit_code = 3


class SocketDeniedError(UnavailableError):
    """This user may not ask the running agent."""

    exit_code = 77
