"""The journal's tables, and how an older file becomes a newer one."""

import re
import sqlite3

APPLICATION_ID = 0x49474741
"""Marks the file as a journal of this agent (`IGGA`): sqlite.org/pragma.html#pragma_application_id."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE journal (
        one            INTEGER PRIMARY KEY CHECK (one = 1),
        journal_id     TEXT    NOT NULL,
        revision       INTEGER NOT NULL,  -- grows with every `started` write
        cursor         INTEGER NOT NULL,  -- the highest sequence that was journaled
        lost           INTEGER NOT NULL,  -- 1 until the first sweep of a journal that replaced another ends
        mark           INTEGER NOT NULL,  -- up to this sequence, a lost journal cannot know what was done
        pruned_through INTEGER NOT NULL,  -- the highest sequence that was pruned
        created_at     TEXT    NOT NULL
    ) STRICT;
    CREATE TABLE activities (
        id          INTEGER PRIMARY KEY,
        sequence    INTEGER NOT NULL,
        runtime     TEXT    NOT NULL,
        action      TEXT    NOT NULL,
        digest      TEXT    NOT NULL,     -- of its content: the same id with another one is not taken in
        author_id   INTEGER,
        created_at  TEXT,
        state       TEXT    NOT NULL CHECK (state IN ('received', 'started', 'finished', 'reported')),
        uncertain   INTEGER NOT NULL,
        received_at TEXT    NOT NULL,
        started_at  TEXT,
        finished_at TEXT,
        reported_at TEXT,
        going_back  TEXT,                 -- as JSON, once a reconfigure decided to go back
        status      TEXT CHECK (status IN ('completed', 'rejected')),
        changed     INTEGER NOT NULL DEFAULT 0,
        recovered   INTEGER NOT NULL DEFAULT 0,
        code        TEXT,
        message     TEXT,
        hint        TEXT,
        evidence    TEXT    NOT NULL DEFAULT '{}',
        outcome     TEXT,
        body        TEXT                  -- as JSON, while it is not finished; may hold secrets; last, for it is long
    ) STRICT;
    CREATE INDEX activities_by_lane ON activities (state, runtime, sequence);
    CREATE TABLE calls (
        activity_id INTEGER NOT NULL REFERENCES activities (id) ON DELETE CASCADE,
        number      INTEGER NOT NULL,
        call        TEXT    NOT NULL,
        decisive    INTEGER NOT NULL,
        going_back  INTEGER NOT NULL,
        running     INTEGER,              -- of A
        incarnation TEXT,                 -- of A
        boot_id     TEXT,                 -- in which A was read
        detail      TEXT    NOT NULL,
        at          TEXT    NOT NULL,
        PRIMARY KEY (activity_id, number)
    ) STRICT;
    CREATE TABLE runtimes (
        runtime   TEXT PRIMARY KEY,
        committed TEXT,                   -- the last release that was seen ready; null: none
        last_verb TEXT                    -- of the last start, stop or restart that was begun
    ) STRICT;
    """,
    # 0: only `last_verb` counts, saved from a journal that this one replaced
    "ALTER TABLE runtimes ADD COLUMN known INTEGER NOT NULL DEFAULT 1;",
)
SCHEMA_VERSION = len(MIGRATIONS)
_COMMENT = re.compile(r"--[^\n]*")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an older, or an empty, file to this version, each step in one transaction."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {script}"
            f"PRAGMA user_version = {number}; PRAGMA application_id = {APPLICATION_ID}; COMMIT;"
        )


def statements(connection: sqlite3.Connection) -> set[str]:
    """List what the tables and indexes of a file were made by, without comments: a flipped bit in it passes all checks.

    SQLite keeps the text and goes by it: sqlite.org/schematab.html.
    """
    found = connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")
    return {" ".join(_COMMENT.sub("", sql).split()) for (sql,) in found}


def expected_statements(version: int) -> set[str]:
    """List what a file of a version has at least."""
    connection = sqlite3.connect(":memory:")
    try:
        for script in MIGRATIONS[:version]:
            connection.executescript(script)
        return statements(connection)
    finally:
        connection.close()
