import errno

import pytest

from agent.errors import Rejection
from agent.protocol import ReasonCode
from agent.runtimes import disk


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(errno.ENOSPC, "x", "/a/b"), ReasonCode.NO_SPACE, "cannot stage: the disk is full: /a/b"),
        (OSError(errno.EDQUOT, "x"), ReasonCode.NO_SPACE, "cannot stage: the disk is full"),
        (OSError(errno.EACCES, "Permission denied", "/a"), ReasonCode.INTERNAL, "cannot stage: Permission denied: /a"),
        (OSError("odd"), ReasonCode.INTERNAL, "cannot stage: odd"),
    ],
)
def test_an_error_of_the_disk_is_a_sentence_with_a_code(error: OSError, code: ReasonCode, text: str) -> None:
    with pytest.raises(Rejection) as refused, disk.explained("stage", otherwise=ReasonCode.INTERNAL):
        raise error
    assert (refused.value.code, refused.value.message) == (code, text)
