import asyncio

import pytest

from agent.conditions import Conditions
from agent.link.standing import Revocation, Standing


async def test_the_first_reason_stays_and_is_shown(conditions: Conditions) -> None:
    standing = Standing(conditions)
    await standing.wait_if_lost()
    assert (standing.permitted, standing.revocation) == (True, None)
    standing.revoke(Revocation.IDENTITY_IN_USE)
    standing.revoke(Revocation.DECOMMISSIONED)
    assert (standing.permitted, standing.revocation) == (False, Revocation.IDENTITY_IN_USE)
    assert [condition.code for condition in conditions.all()] == ["identity_in_use"]
    assert standing.changed.is_set()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await standing.wait_if_lost()
