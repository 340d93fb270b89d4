"""Say what went wrong with the disk, in one way for all who write to it."""

from collections.abc import Iterator
from contextlib import contextmanager

from agent import means
from agent.errors import Rejection
from agent.files import FULL
from agent.protocol import ReasonCode


@contextmanager
def explained(doing: str, *, otherwise: ReasonCode) -> Iterator[None]:
    """Turn an OSError into a Rejection: `no_space` when the disk is full, else `otherwise`.

    Args:
        doing: Completes "cannot …".
        otherwise: The code of all other errors.
    """
    try:
        yield
    except OSError as error:
        at = f": {error.filename}" if error.filename else ""
        if error.errno in FULL:
            hint = "free space on the disk of the state folder"
            raise Rejection(ReasonCode.NO_SPACE, f"cannot {doing}: the disk is full{at}", hint=hint) from error
        hint = means.hint(error) or "check the state folder and its permissions"
        raise Rejection(otherwise, f"cannot {doing}: {error.strerror or error}{at}", hint=hint) from error
