"""An edge that is not lost between two waits."""

import asyncio


class Wakeup:
    """Wakes one waiter; what is set while nobody waits is seen by the next wait.

    A further waiter gets an edge of its own with `subscribe`.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._followers: list[Wakeup] = []

    def set(self) -> None:
        """Wake the waiter, and those of all followers."""
        self._event.set()
        for follower in self._followers:
            follower.set()

    async def wait(self) -> None:
        """Return when it was set since the last wait."""
        await self._event.wait()
        self._event.clear()

    def subscribe(self) -> "Wakeup":
        """Return an edge of its own for a further waiter."""
        follower = Wakeup()
        self._followers.append(follower)
        return follower
