"""Settings, configs and journal rows that are wrong.

Settings: TOML with wrong types, unknown keys, nests, dates, numbers of thousands of digits, and text that is no TOML.
`check-config` says what is wrong, naming the file and the key, with exit code 78, or finds the settings valid; it never
fails itself, and shows no secret.

Configs: keys, values, and files with odd names and content. A config is refused before anything is written, or what a
runtime gets is exactly what it said.

Journal rows: one cell of a sound journal holds something else. The journal is set aside and begun anew, or what cannot
be read is said as an error of the journal, which a restart ends.
"""

import asyncio
import contextlib
import io
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from pydantic import ValidationError

from agent.cli import main
from agent.conditions import Conditions
from agent.errors import JournalError, Rejection
from agent.journal import Journal, Row
from agent.link.parcel import pack
from agent.local import views
from agent.protocol import Config, Reason, ReasonCode, ReportOutcome, ReportStatus, RuntimeName, Verb
from agent.redaction import Redactor
from agent.runtimes import rules
from agent.runtimes.releases import Releases
from tests.faults import messages
from tests.faults.examples import each
from tests.faults.fault import Budget, Ground
from tests.faults.spoilt import TEXTS, Raw, scalars, spoilt, write
from tests.faults.tally import Tally

SECRET = "do-not-print-me-7Qx"
GOOD_SETTINGS: dict[str, Any] = {
    "supervisor": {"url": "https://supervisor.example.com", "ca_file": "/etc/iggy-agent/ca.pem"},
    "agent": {"state_dir": "/var/lib/iggy-agent", "socket": "/run/iggy-agent/agent.sock", "shutdown_grace": 20},
    "runtimes": {
        "iggy": {
            "driver": "process",
            "command": ["iggy-server", "--verbose"],
            "environment": {"RUST_LOG": "info", "IGGY_ROOT_PASSWORD": SECRET},
            "action_timeout": 300,
            "probe": {"http": "http://127.0.0.1:3000/ping", "expect": "pong", "status": 200, "stable_for": 0.5},
        },
        "connectors": {
            "driver": "systemd",
            "unit": "connectors.service",
            "probe": {"http": "http://127.0.0.1:8081/health", "api_key": SECRET},
        },
    },
}
TOML_WORDS = (
    *("inf", "-inf", "nan", "2026-01-01", "07:32:00", "1979-05-27T07:32:00Z", "0x7f", "1_000", "'''x'''", "+1", "01"),
    *("9" * 5_000, "1e99999", "[" * 3_000, "{a = " * 300 + "1" + "}" * 300, '{a = 1, "a" = 2}', "\x00", "\ud800"),
)
TOML_TEXTS = (
    *("a = " + "[" * 5_000, "a = " + "{a = " * 5_000, ".".join("a" * 20_000) + " = 1", "a = " + "9" * 5_000),
    *("[a]\n[a]", "[a.b]\n[[a]]", "a = 1\na.b = 2", "[" + ".".join("a" * 20_000) + "]", "a = '''", "\ufeffa = 1"),
    *("_env_file = '/etc/passwd'", "_cli_parse_args = true", "_secrets_dir = '/'", "self = 1", "_build_sources = []"),
    *("a.b.c = 2026-01-01", "[runtimes.iggy]\nprobe = []", "runtimes = [[]]", "agent = 1", "[[supervisor]]", ""),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a command answered."""

    code: int
    out: str
    err: str


def run(*arguments: str) -> Shown:
    """Run `iggy-agent` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return Shown(code, out.getvalue(), err.getvalue())


def toml(value: Any) -> str:
    """Write a value as TOML, or as what is nearly TOML."""
    match value:
        case dict():
            return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(inner)}" for key, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case None:
            return "null"
        case _:
            return write(value)


def document(tables: Any) -> bytes:
    """Write settings as a TOML file."""
    lines = [f"{json.dumps(str(key))} = {toml(value)}" for key, value in tables.items()]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


toml_values = st.one_of(scalars, st.sampled_from(TOML_WORDS).map(Raw))
settings_files = st.one_of(
    spoilt(GOOD_SETTINGS, values=toml_values).filter(lambda value: isinstance(value, dict)).map(document),
    st.sampled_from(TOML_TEXTS).map(str.encode),
    st.builds(lambda before, text: before + b"\n" + text.encode(), st.just(document(GOOD_SETTINGS)), st.text()),
    st.binary(max_size=50),
)


def judge_settings(path: Path, content: bytes) -> None:
    """Check what is said of a settings file."""
    path.write_bytes(content)
    shown = run("check-config", "--config", str(path), "--print", "--format", "json")
    assert shown.code in {0, 78}, shown.err
    assert "Traceback" not in shown.err
    assert SECRET not in shown.out + shown.err
    answer = json.loads(shown.out)
    assert answer["valid"] is (shown.code == 0)
    if shown.code == 0:
        return
    assert shown.err.startswith("iggy-agent: ")
    for problem in answer["problems"]:
        assert problem["source"], problem
        assert problem["message"].startswith("cannot "), problem
        assert str(path) in shown.err, "the file is not named"
        assert problem["key"] or "cannot parse it" in problem["message"] or "cannot read it" in problem["message"], (
            problem
        )


# --- configs

odd_keys = st.one_of(
    st.sampled_from(
        ["IGGY_A", "IGGY_SYSTEM_PATH", "IGGY_CONNECTORS_X", "LD_PRELOAD", "IGGY_", "IGGY_CONFIG_PATH", *TEXTS]
    ),
    st.from_regex(r"IGGY_[A-Z0-9_]{1,20}", fullmatch=True),
)
odd_values = st.one_of(
    st.sampled_from(TEXTS), st.text(), st.sampled_from(['a"b\\c`d$e', "$HOME ${X} `id`", "#", ";", "a=b"])
)
odd_paths = st.one_of(
    st.sampled_from(
        ["config.toml", "connectors/a.toml", "a", "a/b", "A/B", "..", "a/../b", "/a", "a//b", "x" * 101, *TEXTS]
    ),
    st.from_regex(r"[A-Za-z0-9._-]{1,8}(/[A-Za-z0-9._-]{1,8}){0,4}", fullmatch=True),
)
odd_contents = st.one_of(
    st.sampled_from([*TEXTS, *TOML_TEXTS, "[tcp]\nport = 1\n"]),
    st.text(),
    st.sampled_from([*TOML_WORDS]).map("a = {}".format),
)
configs = st.fixed_dictionaries(
    {
        "values": st.dictionaries(odd_keys, odd_values, max_size=4),
        "files": st.lists(st.fixed_dictionaries({"path": odd_paths, "content": odd_contents}), max_size=3),
        "runtime_version": st.none() | st.sampled_from(TEXTS),
        "name": st.sampled_from(["main", "../x", *TEXTS]),
        "version": st.sampled_from([1, 2**63 - 1, 3]),
    }
)


def judge_config(folder: Path, changes: dict[str, Any]) -> None:
    """Check that a config is refused before anything is written, or applied exactly."""
    shutil.rmtree(folder, ignore_errors=True)
    releases = Releases(folder, RuntimeName.IGGY)
    try:
        config = Config.model_validate({**messages.config(), "secret_keys": [], **changes})
        config = config.model_copy(update={"sha256": config.compute_sha256()})
    except (ValidationError, UnicodeEncodeError):  # such an activity is not taken in at all
        return
    if (code := _refusal(releases, config)) is not None:
        assert code is ReasonCode.CONFIG_INVALID
        assert not folder.exists(), "a refused config left something behind"
        return
    releases.switch(releases.stage(config).name)
    files = folder / "releases" / f"{config.id}-{config.version}" / "files"
    written = {str(file.relative_to(files)): file.read_bytes() for file in files.rglob("*") if file.is_file()}
    assert written == {file.path: file.content.encode() for file in config.files}
    pointers = {rules.CONFIG_PATH[RuntimeName.IGGY]: str(folder / "current" / "files" / "config.toml")}
    assert releases.environment() == {**config.values, **(pointers if "config.toml" in written else {})}
    assert {path.name for path in folder.iterdir()} == {"releases", "current"}


def _refusal(releases: Releases, config: Config) -> ReasonCode | None:
    try:
        releases.check(config)
    except Rejection as refused:
        return refused.code
    return None


# --- journal rows

CELLS = {
    "activities": {
        "text": (
            *("runtime", "action", "digest", "created_at", "received_at", "started_at", "finished_at", "reported_at"),
            *("going_back", "code", "message", "hint", "evidence", "outcome", "body"),
        ),
        "number": ("author_id", "uncertain", "changed", "recovered"),
    },
    "calls": {
        "text": ("call", "incarnation", "boot_id", "detail", "at"),
        "number": ("number", "decisive", "going_back", "running"),
    },
    "runtimes": {"text": ("runtime", "committed", "last_verb"), "number": ()},
    "journal": {"text": ("created_at",), "number": ("cursor", "lost")},
}
"""Without the numbers that nothing can be compared with: another sequence, mark or revision is another true story."""
row_texts = st.one_of(
    st.sampled_from(
        [*[text.encode("utf-8", "replace") for text in TEXTS], b"\xff\xfe", b"[]", b"null", b'"x"', b"{", b"1"]
    ),
    st.sampled_from(
        [b'{"superseded": 1}', b'{"superseded": false, "reason": {}, "evidence": []}', b"[" * 5_000, b"NaN"]
    ),
    st.binary(max_size=20),
)
row_numbers = st.sampled_from([-(2**63), -1, 0, 1, 2, 2**53, 2**63 - 1])
cells = st.sampled_from(
    [(table, kind, name) for table, of in CELLS.items() for kind in of for name in of[kind]]
).flatmap(lambda cell: st.tuples(st.just(cell), row_texts if cell[1] == "text" else row_numbers))
Cell = tuple[tuple[str, str, str], bytes | int]


async def make_journal(folder: Path) -> str:
    """Make a sound journal with an activity in each state; returns its id."""
    journal_id = await Journal.create(folder)
    async with opened(folder, journal_id) as journal:
        await journal.know_runtime("iggy", current="42-3")
        items = [messages.activity(number, runtime="iggy") for number in (1, 2, 3)]
        unreadable = {**messages.activity(5), "action": 5}
        await journal.take([*items, messages.reconfigure(4), unreadable], sweep=None)
        for item in items:
            await journal.start(item["id"], Verb.RESTART)
            await journal.record(
                *(item["id"], "start"),
                decisive=True,
                running=True,
                incarnation="boot.1.2",
                boot_id="boot",
                detail={"signal": "SIGTERM"},
            )
        reason = Reason(code=ReasonCode.NOT_READY, message="cannot restart: it never got ready")
        await journal.go_back(items[2]["id"], superseded=False, reason=reason, evidence={"before": None})
        for item in items[:2]:
            await journal.finish(item["id"], status=ReportStatus.REJECTED, reason=reason, evidence={"after": {}})
        await journal.reported({items[0]["id"]: ReportOutcome.RECORDED})
    return journal_id


@contextlib.asynccontextmanager
async def opened(folder: Path, journal_id: str) -> AsyncIterator[Journal]:
    """Open a journal, and close it."""
    journal = await Journal.open(folder, journal_id=journal_id, conditions=Conditions())
    try:
        yield journal
    finally:
        await journal.close()


def spoil_cell(file: Path, cell: Cell) -> None:
    """Let one cell of a journal hold something else, in every line that the table's rules allow it in."""
    (table, kind, name), value = cell
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        wanted = "CAST(? AS TEXT)" if kind == "text" else "?"
        with contextlib.suppress(sqlite3.IntegrityError):
            connection.execute(f"UPDATE OR IGNORE {table} SET {name} = {wanted}", (value,))


async def judge_journal(folder: Path, journal_id: str) -> bool:
    """Use a journal as an agent does that starts on it; returns whether a part of it could not be read."""
    redactor = Redactor()
    damaged = False
    async with opened(folder, journal_id) as journal:
        await journal.know_runtime("iggy", current=None)
        token = await journal.begin_sweep()
        await journal.take([messages.activity(6), messages.reconfigure(4)], sweep=token)
        await journal.end_sweep(token, last=6)
        for use in (
            journal.counts,
            journal.unfinished,
            partial(journal.outbox, 10),
            partial(journal.queue, "iggy"),
            partial(journal.next_foreign, ["iggy"]),
            partial(journal.committed, "iggy"),
            partial(journal.last_verb, "iggy"),
            partial(journal.recent, 100),
            partial(journal.prune, days=30, count=0),
        ):
            try:
                result = await use()
            except JournalError:
                damaged = True
                continue
            for item in result if isinstance(result, list) else ():
                if isinstance(item, Row):
                    assert json.dumps(redactor.data([views.summary(item), views.detail(item)]))
                else:
                    assert pack(item).content
        # Whatever the journal held, what is new is begun and finished.
        fresh = messages.activity(7, runtime="iggy")
        await journal.take([fresh], sweep=None)
        assert await journal.start(fresh["id"], Verb.RESTART)
        assert await journal.finish(fresh["id"], status=ReportStatus.COMPLETED)
    return damaged


def judge_cell(pattern: Path, folder: Path, journal_id: str, cell: Cell) -> None:
    """Check what an agent makes of a journal with a wrong cell, and that a restart is the end of it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pattern, folder)
    spoil_cell(folder / "journal.db", cell)
    if asyncio.run(judge_journal(folder, journal_id)):
        assert not asyncio.run(judge_journal(folder, journal_id)), "a restart did not begin anew"


async def files(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Do the row."""
    pattern = ground.folder / "sound"
    pattern.mkdir()
    journal_id = await make_journal(pattern)
    rounds: tuple[tuple[str, Any, Callable[[Any], None]], ...] = (
        ("bad settings", settings_files, partial(judge_settings, ground.folder / "agent.toml")),
        ("an odd config", configs, partial(judge_config, ground.folder / "iggy")),
        ("a bad cell of the journal", cells, partial(judge_cell, pattern, ground.folder / "state", journal_id)),
    )

    def work() -> None:
        while budget.more():
            for story, examples, judge in rounds:
                each(ground, Budget(0), tally, story, examples, judge)

    await asyncio.to_thread(work)
