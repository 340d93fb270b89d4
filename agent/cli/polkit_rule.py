"""`polkit-rule`: what the agent's user may do to systemd, generated from the settings."""

import argparse
import json
import os
import pwd
from collections.abc import Sequence

from agent.cli.output import print_json, print_text
from agent.cli.parser import OutputFormat
from agent.errors import SettingsError
from agent.protocol import DriverKind
from agent.settings import Settings, load

SERVICE_USER = "iggy-agent"
"""The user of the shipped unit."""
VERBS = ("start", "stop", "restart", "reset-failed", "ref")
"""What the systemd driver asks for, by the names that systemd gives polkit; `ref` keeps a stopped unit in memory."""
RULE = """\
// What the Iggy node agent may do to systemd. Generated from its settings: iggy-agent polkit-rule
// It belongs into /etc/polkit-1/rules.d/60-iggy-agent.rules; make it anew when runtimes.*.unit changes.
polkit.addRule(function (action, subject) {{
    if (subject.user !== {user}) {{
        return polkit.Result.NOT_HANDLED;
    }}
    var units = {units};
    var verbs = {verbs};
    if (action.id === "org.freedesktop.systemd1.manage-units" &&
        units.indexOf(action.lookup("unit")) >= 0 && verbs.indexOf(action.lookup("verb")) >= 0) {{
        return polkit.Result.YES;
    }}
    return polkit.Result.NO;
}});"""


def polkit_rule(args: argparse.Namespace) -> int:
    """Print the rule; where it goes is the caller's affair."""
    settings = load(config=args.config, environ=os.environ).settings
    user = args.user or default_user(os.geteuid())
    units = managed_units(settings)
    rule = make_rule(user, units)
    if args.format == OutputFormat.JSON:
        print_json({"user": user, "units": list(units), "verbs": list(VERBS), "rule": rule})
    else:
        print_text(rule)
    return 0


def managed_units(settings: Settings) -> list[str]:
    """List the units of the settings.

    Raises:
        SettingsError: There is none.
    """
    runtimes = settings.runtimes.values()
    units = sorted({one.unit for one in runtimes if one.driver is DriverKind.SYSTEMD and one.unit is not None})
    if not units:
        msg = "cannot make a rule: no runtime is managed through systemd"
        raise SettingsError(msg, hint='set runtimes.RUNTIME.driver = "systemd" and its unit; else no rule is needed')
    return units


def make_rule(user: str, units: Sequence[str]) -> str:
    """Write the rule: this user, these units, the verbs of the driver; all else is denied to this user.

    A rule for all of the user's actions, not of systemd's only: a node agent has no other business with polkit.
    `unit` and `verb` are told by systemd itself: org.freedesktop.systemd1(5), Security.
    """
    return RULE.format(user=json.dumps(user), units=json.dumps(list(units)), verbs=json.dumps(list(VERBS)))


def default_user(user_id: int) -> str:
    """Return the user that the rule is for when none is named: whoever asks, and for root the shipped unit's."""
    if user_id == 0:
        return SERVICE_USER
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError as error:
        msg = f"cannot make a rule: user {user_id} has no name"
        raise SettingsError(msg, hint="name the agent's user with --user") from error
