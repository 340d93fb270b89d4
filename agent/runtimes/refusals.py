"""What systemd's errors mean: each becomes a rejection with a sentence of its own."""

from agent.errors import Rejection
from agent.protocol import ReasonCode
from agent.runtimes.bus import AwayError, BusError, RefusedError
from agent.runtimes.driver import Call

_SYSTEMD, _DBUS = "org.freedesktop.systemd1.", "org.freedesktop.DBus.Error."

_PERMISSION = "install the rule that `iggy-agent polkit-rule` writes, and see that polkit runs"
_LOOK = "look at it: systemctl status {unit}"
_MEANINGS: dict[str, tuple[ReasonCode | None, str, str]] = {
    _SYSTEMD + "NoSuchUnit": (
        ReasonCode.NOT_FOUND,
        "there is no unit {unit}",
        "install it, or correct `unit` in the settings",
    ),
    _SYSTEMD + "UnitMasked": (ReasonCode.START_FAILED, "its unit is masked", "systemctl unmask {unit}"),
    _SYSTEMD + "BadUnitSetting": (
        ReasonCode.START_FAILED,
        "its unit is badly written",
        "systemd-analyze verify {unit} says what is wrong",
    ),
    _SYSTEMD + "TransactionIsDestructive": (
        ReasonCode.BUSY,
        "somebody else's job is queued, and this one would undo it",
        "systemctl list-jobs shows it; dispatch again when it is done",
    ),
    _SYSTEMD + "TransactionJobsConflicting": (ReasonCode.START_FAILED, "its dependencies contradict each other", _LOOK),
    _SYSTEMD + "TransactionOrderIsCyclic": (ReasonCode.START_FAILED, "its dependencies go in a circle", _LOOK),
    _SYSTEMD + "ShuttingDown": (ReasonCode.BUSY, "the machine is going down", "dispatch again when it is up"),
    _SYSTEMD + "OnlyByDependency": (
        None,
        "its unit refuses to be asked by hand",
        "remove RefuseManualStart= and RefuseManualStop= from {unit}",
    ),
    _DBUS + "AccessDenied": (ReasonCode.NOT_PERMITTED, "systemd refused it to this user", _PERMISSION),
    _DBUS + "InteractiveAuthorizationRequired": (
        ReasonCode.NOT_PERMITTED,
        "systemd refused it to this user",
        _PERMISSION,
    ),
}
"""D-Bus error: the code (None: that of the failed verb), the cause, the next step."""


def rejection(error: BusError, doing: str, unit: str, call: Call | None) -> Rejection:
    """Make the rejection of a call that did not succeed.

    Args:
        error: What came back.
        doing: Completes "cannot …".
        unit: Its name.
        call: The verb; None for a reading.
    """
    if isinstance(error, RefusedError) and call is not None:
        failed = ReasonCode.STOP_FAILED if call is Call.STOP else ReasonCode.START_FAILED
        code, cause, hint = _MEANINGS.get(error.name, (None, "systemd refused it", _LOOK))
        detail = "" if error.name in _MEANINGS else f": {error}"
        evidence = {"error": error.name, "error_text": str(error)}
        msg = f"cannot {doing}: {cause.format(unit=unit)}{detail}"
        return Rejection(code or failed, msg, hint=hint.format(unit=unit), evidence=evidence)
    away = isinstance(error, AwayError)
    cause = f"systemd cannot be asked: {error}" if away else f"systemd refused to say: {error}"
    hint = "see that dbus and systemd run; the agent asks again by itself"
    return Rejection(ReasonCode.DRIVER_UNAVAILABLE, f"cannot {doing}: {cause}", hint=hint)
