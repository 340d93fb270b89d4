"""The users, tokens and streams that the `iggy-server` double keeps in its data folder."""

import json
import os
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT_ID = 0


class NoRootCredentialsError(Exception):
    """There is no root user yet, and its credentials are not a pair; the text is Iggy's."""


class Accounts:
    """The root user, its personal access tokens and the streams: durable; access tokens: only with a fixed secret.

    Args:
        path: the file of the durable part.
        environ: holds IGGY_ROOT_USERNAME and IGGY_ROOT_PASSWORD, used only when the root user is made.
        secret: signs the access tokens; empty means a random one, so that no access token outlives the process.

    Raises:
        NoRootCredentialsError: the root user cannot be made from half a pair.
    """

    def __init__(self, path: Path, environ: Mapping[str, str], secret: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._secret = (secret or secrets.token_hex(32)).encode()
        self.generated_password: str | None = None
        self._state = self._load() or self._create(environ)

    @property
    def streams(self) -> list[str]:
        """The names of the streams."""
        return list(self._state["streams"])

    def create_stream(self, name: str) -> None:
        """Make a stream unless there is one of that name."""
        with self._lock:
            if name not in self._state["streams"]:
                self._state["streams"].append(name)
                self._save(self._state)

    def knows(self, username: str, password: str) -> bool:
        """Check a user's password."""
        known = [self._state["username"], self._state["password"]]
        return secrets.compare_digest(json.dumps(known), json.dumps([username, password]))

    def issue(self) -> dict[str, Any]:
        """Make an access token for the root user, in the shape of a login's answer; it is good for an hour."""
        expiry = int(time.time()) + 3600
        claims = {"jti": secrets.token_hex(16), "iss": "iggy.apache.org", "sub": str(ROOT_ID), "exp": expiry}
        signed = ".".join(_base64(json.dumps(part).encode()) for part in [{"typ": "JWT", "alg": "HS256"}, claims])
        return {"user_id": ROOT_ID, "access_token": {"token": f"{signed}.{self._sign(signed)}", "expiry": expiry}}

    def accepts(self, token: str) -> bool:
        """Check an access token: its signature and its age."""
        import base64

        signed, _, signature = token.rpartition(".")
        if not signed or not secrets.compare_digest(self._sign(signed), signature):
            return False
        claims = signed.rpartition(".")[2]
        return bool(json.loads(base64.urlsafe_b64decode(claims + "==="))["exp"] > time.time())

    def create_personal_token(self, name: str) -> str:
        """Make a personal access token, which survives a restart."""
        token = secrets.token_urlsafe(40)
        with self._lock:
            self._state["personal_tokens"][name] = token
            self._save(self._state)
        return token

    def knows_personal_token(self, token: str) -> bool:
        """Check a personal access token."""
        return token in self._state["personal_tokens"].values()

    def _sign(self, text: str) -> str:
        import hashlib  # late: these cost a third of the time that the whole start may take
        import hmac

        return _base64(hmac.new(self._secret, text.encode(), hashlib.sha256).digest())

    def _load(self) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return state

    def _create(self, environ: Mapping[str, str]) -> dict[str, Any]:
        username, password = environ.get("IGGY_ROOT_USERNAME"), environ.get("IGGY_ROOT_PASSWORD")
        if (username is None) != (password is None):
            msg = "When providing the custom root user credentials, both username and password must be set."
            raise NoRootCredentialsError(msg)
        if "" in {username, password}:
            msg = "Root user credentials are not set."
            raise NoRootCredentialsError(msg)
        if password is None:
            password = self.generated_password = secrets.token_urlsafe(16)
        state = {"username": username or "iggy", "password": password, "personal_tokens": {}, "streams": []}
        self._save(state)
        return state

    def _save(self, state: dict[str, Any]) -> None:
        new = self._path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


def _base64(data: bytes) -> str:
    import base64

    return base64.urlsafe_b64encode(data).decode().rstrip("=")
