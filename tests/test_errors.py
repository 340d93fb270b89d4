import subprocess
import sys

from agent import errors
from agent.errors import AgentError, JournalError, JournalInUseError, Rejection, SupervisorError
from agent.protocol import Reason, ReasonCode

EXIT_CODES = {
    "AgentError": 1,
    "Rejection": 1,
    "SettingsError": 78,
    "CaFileUnavailableError": 74,
    "IdentityError": 78,
    "IdentityUnavailableError": 74,
    "JournalError": 74,
    "JournalDamagedError": 74,
    "JournalInUseError": 75,
    "JournalFullError": 74,
    "SupervisorError": 69,
    "SocketError": 75,
    "UnavailableError": 3,
    "SocketDeniedError": 77,
}


def test_every_error_has_the_exit_code_that_the_tree_says() -> None:
    tree = {one.__name__: one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, AgentError)}
    assert {name: error.exit_code for name, error in tree.items()} == EXIT_CODES
    for name in EXIT_CODES:
        assert name in (errors.__doc__ or "")


def test_an_error_prints_its_hint() -> None:
    assert str(AgentError("cannot x: y")) == "cannot x: y"
    assert str(AgentError("cannot x: y", hint="do z")) == "cannot x: y (hint: do z)"


def test_a_rejection_becomes_the_reason_of_a_report() -> None:
    evidence = {"log_tail": ["x"]}
    rejection = Rejection(ReasonCode.NOT_READY, "cannot x: y", hint="do z", evidence=evidence)
    assert rejection.reason() == Reason(code="not_ready", message="cannot x: y", hint="do z")
    assert str(rejection) == "not_ready: cannot x: y (hint: do z)"
    evidence["more"] = []
    assert rejection.evidence == {"log_tail": ["x"]}
    assert Rejection(ReasonCode.TIMEOUT, "m").evidence == {}


def test_a_journal_in_use_is_a_journal_error() -> None:
    assert issubclass(JournalInUseError, JournalError)


def test_a_supervisors_answer_is_kept_with_its_error() -> None:
    error = SupervisorError("cannot report: …", status=429, code="rate_limited", retry_after=2.5)
    assert (error.status, error.code, error.retry_after) == (429, "rate_limited", 2.5)


def test_errors_are_handled_without_pydantic() -> None:
    code = "import sys, agent.errors; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
