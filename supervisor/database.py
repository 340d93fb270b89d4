"""The one SQLite file of the Supervisor: opening it, its tables, and the lock that keeps a second server out.

WAL with `synchronous=FULL`: what was committed survives a power loss, and commands may read and write while `serve`
runs. Times are microseconds since 1970.
"""

import contextlib
import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Self

FILE = "supervisor.db"
LOCK_FILE = "serve.lock"
BUSY_SECONDS = 10.0
"""How long one process waits for another one's transaction; those of `serve` take milliseconds."""

MIGRATIONS = (
    """
    CREATE TABLE counters (name TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO counters VALUES ('id', 0);
    CREATE TABLE deployments (
        id INTEGER PRIMARY KEY, tenant_id INTEGER NOT NULL, division_id INTEGER NOT NULL,
        environment_id INTEGER NOT NULL, name TEXT NOT NULL, created_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE api_keys (
        id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, name TEXT NOT NULL, author_id INTEGER NOT NULL,
        deployment_id INTEGER REFERENCES deployments, permissions TEXT NOT NULL,
        created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, revoked_at INTEGER
    ) STRICT;
    CREATE TABLE nodes (
        id INTEGER PRIMARY KEY, deployment_id INTEGER NOT NULL REFERENCES deployments, hostname TEXT NOT NULL,
        machine_id TEXT NOT NULL, agent_version TEXT NOT NULL, created_at INTEGER NOT NULL, removed_at INTEGER,
        last_sequence INTEGER NOT NULL DEFAULT 0, revision INTEGER NOT NULL DEFAULT 0, instance TEXT,
        heartbeat TEXT, heartbeat_at INTEGER
    ) STRICT;
    CREATE INDEX nodes_of_deployment ON nodes (deployment_id, id) WHERE removed_at IS NULL;
    CREATE TABLE enrollment_tokens (
        id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, deployment_id INTEGER NOT NULL REFERENCES deployments,
        created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, machine_id TEXT, node_id INTEGER REFERENCES nodes
    ) STRICT;
    CREATE TABLE node_tokens (
        hash TEXT PRIMARY KEY, node_id INTEGER NOT NULL REFERENCES nodes,
        created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, used INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX tokens_of_node ON node_tokens (node_id);
    CREATE TABLE former_instances (
        node_id INTEGER NOT NULL REFERENCES nodes, instance TEXT NOT NULL, replaced_at INTEGER NOT NULL,
        PRIMARY KEY (node_id, instance)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE configs (
        id INTEGER PRIMARY KEY, deployment_id INTEGER NOT NULL REFERENCES deployments, kind TEXT NOT NULL,
        name TEXT NOT NULL, version INTEGER NOT NULL, author_id INTEGER NOT NULL, content TEXT NOT NULL,
        secrets TEXT NOT NULL, active INTEGER NOT NULL DEFAULT 0, created_at INTEGER NOT NULL,
        UNIQUE (deployment_id, kind, name, version)
    ) STRICT;
    CREATE UNIQUE INDEX one_active_config ON configs (deployment_id, kind) WHERE active = 1;
    CREATE TABLE activities (
        id INTEGER PRIMARY KEY, sequence INTEGER NOT NULL, deployment_id INTEGER NOT NULL REFERENCES deployments,
        node_id INTEGER NOT NULL REFERENCES nodes, author_id INTEGER NOT NULL, runtime TEXT NOT NULL,
        action TEXT NOT NULL, config_id INTEGER REFERENCES configs, status TEXT NOT NULL,
        created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, finished_at INTEGER, reason TEXT,
        report TEXT, report_sha256 TEXT
    ) STRICT;
    CREATE UNIQUE INDEX activities_of_node ON activities (node_id, sequence);
    CREATE INDEX activities_of_deployment ON activities (deployment_id, id);
    CREATE INDEX activities_open ON activities (expires_at) WHERE status = 'processing';
    CREATE TABLE idempotency (
        key_id INTEGER NOT NULL REFERENCES api_keys, idempotency_key TEXT NOT NULL, fingerprint TEXT NOT NULL,
        status INTEGER NOT NULL, headers TEXT NOT NULL, body TEXT NOT NULL, secret_nonce TEXT,
        created_at INTEGER NOT NULL, PRIMARY KEY (key_id, idempotency_key)
    ) STRICT;
    CREATE INDEX idempotency_by_age ON idempotency (created_at);
    """,
)
"""Each brings the store one schema version further; `user_version` is how many were applied."""


class StoreError(Exception):
    """The store cannot be opened, read or written; says why, and what to do next.

    Args:
        message: "cannot X: cause".
        hint: The next step.
        exit_code: What a command exits with: 78 when the arguments or the folder are to blame, else 1.
    """

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code


def connect(folder: Path, *, create: bool = False) -> sqlite3.Connection:
    """Open the store in a folder, and bring its schema up to date.

    Args:
        folder: The data folder.
        create: Make the folder (0700) and the store when they are missing.

    Raises:
        StoreError: It is missing, cannot be written, is damaged, or was written by a newer version.
    """
    path = folder / FILE
    try:
        _prepare(folder, path, create=create)
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise _cannot_open(path, error) from error
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        migrate(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise _cannot_open(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(folder: Path, path: Path, *, create: bool) -> None:
    if create:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Secrets of configs are in it, so nobody else may read it; SQLite gives its -wal and -shm the same mode.
        path.touch(mode=0o600)
    elif not path.is_file():
        msg = f"cannot open {path}: there is no store in {folder}"
        raise StoreError(msg, hint="`iggy-supervisor deployments create --data DIR` makes one", exit_code=78)
    for place in (folder, path):
        if not os.access(place, os.R_OK | os.W_OK):
            raise PermissionError(13, "permission denied", str(place))


def _cannot_open(path: Path, error: Exception) -> StoreError:
    cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    msg = f"cannot open {path}: {cause.lower()}"
    return StoreError(msg, hint="check --data, its owner and its mode, and that the disk is not full", exit_code=78)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema to this program's version, in one transaction.

    Raises:
        StoreError: The store was written by a newer version of this program.
    """
    if (version := _version(connection)) == len(MIGRATIONS):
        return
    if version < len(MIGRATIONS):
        with transaction(connection):
            # Read again: another process may have done it while this one waited for the lock.
            for number in range(_version(connection), len(MIGRATIONS)):
                for statement in filter(str.strip, MIGRATIONS[number].split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number + 1}")
        return
    msg = f"cannot open {path}: it has schema version {version}, and this program knows {len(MIGRATIONS)} at most"
    raise StoreError(msg, hint="run the version of iggy-supervisor that wrote it, or a newer one", exit_code=78)


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


class transaction(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads as a statement: with transaction(c)
    """One write transaction: committed at the end, rolled back when anything is raised."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                self.roll_back()
                raise
        else:
            self.roll_back()

    def roll_back(self) -> None:
        """Undo it; SQLite has already done so itself after some errors, such as a full disk."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


class ServeLock:
    """Holds a data folder for one server; ends with the process, however that ends.

    Raises:
        StoreError: Another server holds it; says which.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _cannot_open(self._path, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            msg = f"cannot serve {self._path.parent}: another iggy-supervisor serves it already (pid {holder})"
            raise StoreError(msg, hint="stop that one, or give this one a --data folder of its own") from error
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
