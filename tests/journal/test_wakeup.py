import asyncio

import pytest

from agent.journal import Wakeup


async def test_what_is_set_while_nobody_waits_is_seen_by_the_next_wait_once() -> None:
    wakeup = Wakeup()
    wakeup.set()
    wakeup.set()
    await asyncio.wait_for(wakeup.wait(), 5)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wakeup.wait(), 0.01)


async def test_a_waiter_is_woken() -> None:
    wakeup = Wakeup()
    waiter = asyncio.create_task(wakeup.wait())
    await asyncio.sleep(0)
    assert not waiter.done()
    wakeup.set()
    await asyncio.wait_for(waiter, 5)


async def test_a_waiter_that_is_cancelled_leaves_the_edge_to_the_next_one() -> None:
    wakeup = Wakeup()
    waiter = asyncio.create_task(wakeup.wait())
    await asyncio.sleep(0)
    wakeup.set()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await asyncio.wait_for(wakeup.wait(), 5)


async def test_each_follower_has_an_edge_of_its_own() -> None:
    wakeup = Wakeup()
    first, second = wakeup.subscribe(), wakeup.subscribe()
    wakeup.set()
    await asyncio.wait_for(first.wait(), 5)
    await asyncio.wait_for(second.wait(), 5)
    await asyncio.wait_for(wakeup.wait(), 5)
    first.set()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(second.wait(), 0.01)
