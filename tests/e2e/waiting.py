"""Waiting for a condition, with a deadline and with a name."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

PATIENCE = 30.0
"""Seconds; what is waited for takes a fraction of one, on a machine that is not overloaded."""

T = TypeVar("T")


@overload
async def until(
    condition: Callable[[], Coroutine[Any, Any, T | None]], what: str, *, within: float = ..., every: float = ...
) -> T: ...
@overload
async def until(condition: Callable[[], T | None], what: str, *, within: float = ..., every: float = ...) -> T: ...
async def until(condition: Callable[[], Any], what: str, *, within: float = PATIENCE, every: float = 0.01) -> Any:
    """Poll a condition, a plain or an async one, until it gives something that is true, and return that.

    Raises:
        TimeoutError: It did not within so many seconds; says what was waited for.
    """
    deadline = time.monotonic() + within
    while True:
        result = condition()
        if isinstance(result, Coroutine):
            result = await result
        if result:
            return result
        if time.monotonic() >= deadline:
            msg = f"waited {within:g} s in vain until {what}"
            raise TimeoutError(msg)
        await asyncio.sleep(every)
