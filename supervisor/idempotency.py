"""The `idempotency-key` header: a POST that is sent again within ten minutes is answered again, and done once.

The answer is stored in the transaction of what it made, so that the two cannot disagree, whatever dies in between.
Refused requests made nothing; they are simply judged again.
"""

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field

from supervisor.clock import SECOND
from supervisor.problems import Code, ProblemError

KEPT = 600 * SECOND
MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class Made:
    """The answer to a POST.

    `secret_nonce` stands for a secret that belongs into the body: it is derived again from the caller's own key, so
    that it is stored nowhere.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    secret_nonce: str | None = None
    replayed: bool = False


def fingerprint(method: str, path: str, body: bytes) -> str:
    """Tell one request from another."""
    return hashlib.sha256(b"\0".join((method.encode(), path.encode(), body))).hexdigest()


def once(
    connection: sqlite3.Connection,
    key: tuple[int, str],
    request: str,
    work: Callable[[sqlite3.Connection], Made],
    now: int,
) -> Made:
    """Do the work of a request, or answer it as it was answered before.

    Args:
        connection: In the transaction that `work` belongs to.
        key: The API key's id, and the idempotency key.
        request: The request's fingerprint.
        work: What the request asks for.
        now: The time.

    Raises:
        ProblemError: The key was used for another request (409), or `work` raised it.
    """
    row = connection.execute(
        "SELECT * FROM idempotency WHERE key_id = ? AND idempotency_key = ? AND created_at > ?", (*key, now - KEPT)
    ).fetchone()
    if row is not None:
        if row["fingerprint"] != request:
            raise reused(key[1])
        return Made(row["status"], row["body"].encode(), json.loads(row["headers"]), row["secret_nonce"], replayed=True)
    made = work(connection)
    connection.execute(
        "INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*key, request, made.status, json.dumps(made.headers), made.body.decode(), made.secret_nonce, now),
    )
    return made


def reused(idempotency_key: str) -> ProblemError:
    """Make the answer to an idempotency key that was used for another request."""
    return ProblemError(
        Code.IDEMPOTENCY_ERROR,
        f"cannot accept idempotency-key {idempotency_key[:64]!r}: it was used for another request",
        field="idempotency-key",
    )


def in_progress(idempotency_key: str) -> ProblemError:
    """Make the answer to a request that is being worked on already."""
    return ProblemError(
        Code.IDEMPOTENT_REQUEST_IN_PROGRESS,
        f"cannot accept idempotency-key {idempotency_key[:64]!r}: the same request is being worked on; ask again soon",
        field="idempotency-key",
    )


def new_nonce() -> str:
    """Make the nonce that a secret is derived from."""
    return secrets.token_hex(16)


def forget_old(connection: sqlite3.Connection, now: int) -> None:
    """Forget the answers whose time is over."""
    connection.execute("DELETE FROM idempotency WHERE created_at <= ?", (now - KEPT,))
