"""The pages that are generated: `python -m tests.docs` writes them, `--check` says which have drifted.

The settings model and the command parser are where the words are; nothing generated is edited by hand.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from agent.cli.parser import build_parser
from agent.settings import AgentSettings, ProbeSettings, RuntimeSettings, SupervisorSettings
from agent.settings.rules import MARGIN
from agent.settings.sources import DELIMITER, PREFIX

ROOT = Path(__file__).resolve().parent.parent

PLACES = {
    "agent.state_dir": "`$STATE_DIRECTORY`, `/var/lib/iggy-agent`, or `~/.local/state/iggy-agent`",
    "agent.socket": "`agent.sock` in `$RUNTIME_DIRECTORY`, `/run/iggy-agent`, or `$XDG_RUNTIME_DIR/iggy-agent`",
}
"""Defaults that depend on who runs the agent."""

SAMPLE: Mapping[str, Mapping[str, Any]] = {
    "supervisor": {"url": "https://supervisor.example.com"},
    "agent": {},
    "runtimes.iggy": {"driver": "systemd", "unit": "iggy.service"},
    "runtimes.iggy.probe": {"http": "http://127.0.0.1:3000/ping", "expect": "pong"},
    "runtimes.connectors": {"driver": "systemd", "unit": "iggy-connectors.service"},
    "runtimes.connectors.probe": {"http": "http://127.0.0.1:8081/health"},
}
"""What the sample file sets; the other keys are there as comments, once."""

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("supervisor", SupervisorSettings),
    ("agent", AgentSettings),
    ("runtimes.iggy", RuntimeSettings),
    ("runtimes.iggy.probe", ProbeSettings),
)


def sample_settings() -> str:
    """Write `config/agent.toml`."""
    lines = [
        "# Settings of the Iggy node agent, with every key. Generated: `make docs`.",
        "# A key that is commented out shows its default, or an example where it has none (docs/configuration.md).",
        "# Check a change with `iggy-agent check-config`; it takes effect when the agent is started again.",
    ]
    for table, model in SECTIONS:
        lines += ["", *(f"# {line}" for line in _wrapped(model.__doc__ or "")), f"[{table}]"]
        for name, field in model.model_fields.items():
            if name != "probe":
                lines += [*(f"# {line}" for line in _wrapped(_meaning(field))), _sample_line(table, name, field)]
    for table, values in SAMPLE.items():
        if table.startswith("runtimes.connectors"):
            lines += ["", f"[{table}]", *(f"{name} = {_toml(value)}" for name, value in values.items())]
    return "\n".join(lines) + "\n"


def _sample_line(table: str, name: str, field: FieldInfo) -> str:
    if name in SAMPLE[table]:
        return f"{name} = {_toml(SAMPLE[table][name])}"
    default = field.get_default(call_default_factory=True, validated_data={})
    if field.examples:
        default = field.examples[0]
    return f"#{name} = {_toml('…' if default is None else default)}"


def configuration_page() -> str:
    """Write `docs/configuration.md`."""
    lines = [CONFIGURATION_HEAD.format(prefix=PREFIX, delimiter=DELIMITER, margin=f"{MARGIN:g}").rstrip()]
    for table, model in SECTIONS:
        shown = table.replace("iggy", "RUNTIME") if table.startswith("runtimes") else table
        lines += ["", f"## `[{shown}]`", "", " ".join((model.__doc__ or "").split())]
        if table == "runtimes.iggy":
            lines += ["", "RUNTIME is `iggy` or `connectors`; a node has exactly the runtimes that are named here."]
        lines += ["", "| key | value | default | meaning |", "|---|---|---|---|"]
        lines += [_row(table, name, field) for name, field in model.model_fields.items() if name != "probe"]
    lines += ["", VARIABLES_HEAD.rstrip(), "", "| key | environment variable | credential |", "|---|---|---|"]
    lines += list(_variables())
    return "\n".join(lines) + "\n"


def _row(table: str, name: str, field: FieldInfo) -> str:
    default = PLACES.get(f"{table}.{name}")
    if default is None:
        value = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
        default = "(needed)" if field.is_required() else "none" if value is None else f"`{_toml(value)}`"
    return f"| `{name}` | {_type(field.annotation)} | {default} | {_meaning(field)} |"


def _variables() -> Iterator[str]:
    for table, model in SECTIONS:
        for name, field in model.model_fields.items():
            key = f"{table}.{name}"
            if name == "probe":
                continue
            variable = PREFIX + key.replace(".", DELIMITER).upper()
            credential = key.replace(".", DELIMITER)
            secret = " (secret)" if SecretStr in get_args(field.annotation) else ""
            if name == "environment":
                variable, credential = f"{variable}{DELIMITER}NAME", f"{credential}{DELIMITER}NAME"
            yield f"| `{key}`{secret} | `{variable}` | `{credential}` |"


def _type(annotation: Any) -> str:
    if get_origin(annotation) in {Union, UnionType}:
        annotation = next(one for one in get_args(annotation) if one is not NoneType)
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return ", ".join(f"`{word}`" for word in annotation)
    names = {float: "seconds", int: "number", bool: "true, false", str: "text", SecretStr: "text", Path: "path"}
    names |= {list: "list of texts", dict: "table of texts"}
    return names[get_origin(annotation) or annotation]


def _meaning(field: FieldInfo) -> str:
    return field.description or ""


def _wrapped(text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if len(line) + len(word) > 115:
            yield line
            line = ""
        line = f"{line} {word}".lstrip()
    yield line


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def commands_page() -> str:
    """Write `docs/cli.md`."""
    parser = build_parser()
    lines = [CLI_HEAD.rstrip(), "", "## iggy-agent", "", *_fenced(parser.format_help())]
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        lines += ["", f"## iggy-agent {name}", "", *_fenced(command.format_help())]
    return "\n".join(lines) + "\n"


def _fenced(text: str) -> list[str]:
    return ["```text", *text.rstrip().splitlines(), "```"]


CONFIGURATION_HEAD = """\
# Settings

Generated from `agent/settings/model.py` by `make docs`.

`iggy-agent check-config` names everything that is wrong with the settings at once; `--print` shows every value that is
in force and where it came from. A setting is taken from the last of these that has it:

1. its default;
2. `agent.toml`: in `$CONFIGURATION_DIRECTORY` (set by systemd), else `/etc/iggy-agent` as root, else
   `$XDG_CONFIG_HOME/iggy-agent` or `~/.config/iggy-agent`; `--config FILE` replaces the search. Without `--config` it
   may be missing;
3. `conf.d/*.toml` beside it, in the order of their names: tables are merged, everything else is replaced;
4. credentials: files in `$CREDENTIALS_DIRECTORY` (`LoadCredential=` of the unit), named as in the last table;
5. environment variables, named as in the last table; an empty one counts as not set;
6. flags: `--log-format`, `--log-level`; `--url` and `--ca-file` of `enroll`.

A key, a variable with the prefix `{prefix}`, or a credential with `{delimiter}` in its name that is not a setting is an
error. A changed setting takes effect when the agent is started again.

The timeouts of a runtime stand in one chain, checked when the settings are read: `attempt_timeout` < `ready_timeout`,
and `stop_timeout` + `start_timeout` + `ready_timeout` + `stable_for` + twice {margin} s of margin ≤ `action_timeout`.
"""

VARIABLES_HEAD = """\
## Variables and credentials

For `connectors` in place of `iggy` the names are alike. A list or a table is given as JSON
(`["iggy-server", "--fresh"]`). NAME keeps its case. One more credential, `enrollment_token`, is not a setting: `run`
enrols with it when the machine has no identity yet, and so does `enroll` without `--token-file`.

Environment variables of a service can be read by every user of the machine; a secret is better a credential.
"""

CLI_HEAD = """\
# Commands

Generated from the commands' own `--help` by `make docs`.

Answers go to stdout, everything else to stderr. With `--format json` stdout holds JSON objects, one a line, each with a
`schema_version`, and the exit code is the same; an error is `{"error": {"message", "hint", "exit_code"}}`. Colours are
used in logs on a terminal only, and not at all when `NO_COLOR` is set.
"""

PAGES: Mapping[Path, Callable[[], str]] = {
    Path("config/agent.toml"): sample_settings,
    Path("docs/configuration.md"): configuration_page,
    Path("docs/cli.md"): commands_page,
}


def main(arguments: Sequence[str], *, root: Path = ROOT) -> int:
    """Write the pages, or compare them."""
    drifted = 0
    for path, make in PAGES.items():
        old = (root / path).read_text() if (root / path).exists() else ""
        new = make()
        if old == new:
            continue
        drifted += 1
        if "--check" in arguments:
            diff = difflib.unified_diff(
                old.splitlines(), new.splitlines(), f"{path}", f"{path} (generated)", lineterm=""
            )
            print("\n".join(diff))
            continue
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(new)
        print(f"written: {path}")
    if drifted and "--check" in arguments:
        print(f"error: {drifted} generated page(s) have drifted; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
