"""Who may do what: API keys with permissions, and the secrets of keys, nodes and enrolments.

Every secret is 256 random bits, shown once and stored as its SHA-256 only. A slow password hash would add nothing: it
protects what people choose, and nobody can guess 256 random bits.
"""

import base64
import hashlib
import hmac
import secrets
import sqlite3
from dataclasses import dataclass
from enum import StrEnum

from supervisor.ids import allocate_id
from supervisor.problems import Code, ProblemError

DAY = 86_400_000_000
MAX_KEY_DAYS = 365
MASK = "********"
"""What a secret value looks like in every answer of the public API."""


class Permission(StrEnum):
    """What an API key may do."""

    READ = "deployment:read"
    """See activities and nodes."""
    MANAGE = "deployment:manage"
    """Dispatch activities and make enrolment tokens; implies `deployment:read`."""
    CONFIG_READ = "deployment:config:read"
    """See configs, with their secrets masked."""
    CONFIG_MANAGE = "deployment:config:manage"
    """Make and activate configs; implies `deployment:config:read`."""


IMPLIED = {
    Permission.MANAGE: frozenset({Permission.READ}),
    Permission.CONFIG_MANAGE: frozenset({Permission.CONFIG_READ}),
}


class SecretKind(StrEnum):
    """The prefix of a secret: lets people and secret scanners tell what they found."""

    API_KEY = "isk"
    """A key of the public API."""
    ENROLLMENT_TOKEN = "iet"  # noqa: S105 - a prefix, not a secret
    """Turns one machine into a node."""
    NODE_TOKEN = "int"  # noqa: S105 - a prefix, not a secret
    """What an agent proves its node with."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment, and where it stands in the hierarchy."""

    id: int
    tenant_id: int
    division_id: int
    environment_id: int


@dataclass(frozen=True, slots=True)
class Caller:
    """An API key that was accepted for one deployment."""

    key_id: int
    api_key: str
    author_id: int
    deployment: Deployment


def new_secret(kind: SecretKind) -> str:
    """Make a secret of 256 random bits."""
    return f"{kind}_{secrets.token_urlsafe(32)}"


def derived_secret(kind: SecretKind, api_key: str, nonce: str) -> str:
    """Make a secret that whoever holds the API key can be given again, though neither is stored in clear."""
    digest = hmac.digest(api_key.encode(), f"{kind}:{nonce}".encode(), "sha256")
    return f"{kind}_{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def hash_secret(secret: str) -> str:
    """Hash a secret the way it is stored."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def create_key(
    connection: sqlite3.Connection,
    *,
    name: str,
    permissions: frozenset[Permission],
    deployment_id: int | None,
    author_id: int | None,
    days: int,
    now: int,
) -> tuple[int, str]:
    """Make an API key, for one deployment or for all of this store.

    Returns:
        Its id, and the key itself, which is not kept.
    """
    key_id, key = allocate_id(connection, now), new_secret(SecretKind.API_KEY)
    connection.execute(
        "INSERT INTO api_keys (id, hash, name, author_id, deployment_id, permissions, created_at, expires_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key_id,
            hash_secret(key),
            name,
            author_id or key_id,
            deployment_id,
            " ".join(sorted(permissions)),
            now,
            now + days * DAY,
        ),
    )
    return key_id, key


def authorize(
    connection: sqlite3.Connection, api_key: str | None, deployment_id: int, permission: Permission, now: int
) -> Caller:
    """Accept an API key for a deployment.

    Raises:
        ProblemError: 401 no valid key, 404 no such deployment for this key, 403 the key lacks the permission.
    """
    if not api_key:
        raise ProblemError(Code.API_KEY_MISSING, "cannot authenticate: the header ld-api-key is missing")
    key = connection.execute("SELECT * FROM api_keys WHERE hash = ?", (hash_secret(api_key),)).fetchone()
    if key is None or key["revoked_at"] is not None:
        raise ProblemError(Code.API_KEY_INVALID, "cannot authenticate: the API key is unknown or revoked")
    if key["expires_at"] <= now:
        raise ProblemError(Code.API_KEY_EXPIRED, "cannot authenticate: the API key has expired")
    row = connection.execute(
        "SELECT id, tenant_id, division_id, environment_id FROM deployments WHERE id = ?", (deployment_id,)
    ).fetchone()
    if row is None or key["deployment_id"] not in {None, deployment_id}:
        raise ProblemError(
            Code.UNKNOWN_DEPLOYMENT,
            f"cannot find deployment {deployment_id}: there is none, or the key does not see it",
        )
    granted = {Permission(word) for word in key["permissions"].split()}
    granted = granted.union(*(IMPLIED.get(word, frozenset()) for word in granted))
    if permission not in granted:
        raise ProblemError(Code.PERMISSION_DENIED, f"cannot do this: the API key lacks the permission {permission}")
    return Caller(key["id"], api_key, key["author_id"], Deployment(**row))
