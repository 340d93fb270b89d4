"""The one thread in which the link does what would block the event loop: its few small files."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_FILES = ThreadPoolExecutor(max_workers=1, thread_name_prefix="link-files")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in the link's thread."""
    return await asyncio.get_running_loop().run_in_executor(_FILES, partial(function, *args, **kwargs))
