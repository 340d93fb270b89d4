"""Restarts a unit by hand: as little as can be done over the bus, and by systemctl. Runs inside the booted system.

python bare_client.py bus|systemctl UNIT TIMES      # prints the seconds of each as JSON
"""

import asyncio
import json
import subprocess
import sys
import time
from typing import Any

SYSTEMD, MANAGER_PATH = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"


async def by_bus(unit: str, times: int, pause: float) -> list[float]:
    """Queue a restart, and wait until its job is removed: systemd's D-Bus API asks for no less."""
    # systemctl's part does not need it, and is not to load it.
    from dbus_fast import BusType, Message, MessageType
    from dbus_fast.aio import MessageBus

    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    removed: dict[str, str] = {}
    news = asyncio.Event()

    def receive(message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.member == "JobRemoved":
            removed[message.body[1]] = message.body[3]
            news.set()

    async def call(destination: str, path: str, interface: str, member: str, signature: str = "", *body: Any) -> Any:
        reply = await bus.call(
            Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=list(body),
            )
        )
        if reply.message_type is MessageType.ERROR:
            sys.exit(f"{member} was refused: {reply.body}")
        return reply.body

    bus.add_message_handler(receive)
    rule = f"type='signal',sender='{SYSTEMD}',member='JobRemoved',arg2='{unit}'"
    await call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", "s", rule)
    await call(SYSTEMD, MANAGER_PATH, f"{SYSTEMD}.Manager", "Subscribe")
    seconds = []
    for _ in range(times):
        began = time.monotonic()
        (job,) = await call(SYSTEMD, MANAGER_PATH, f"{SYSTEMD}.Manager", "RestartUnit", "ss", unit, "replace")
        while job not in removed:
            news.clear()
            await news.wait()
        seconds.append(time.monotonic() - began)
        if removed[job] != "done":
            sys.exit(f"a restart ended as {removed[job]}")
        await asyncio.sleep(pause)
    bus.disconnect()
    return seconds


def by_systemctl(unit: str, times: int, pause: float) -> list[float]:
    """Restart it as people do."""
    seconds = []
    for _ in range(times):
        began = time.monotonic()
        subprocess.run(["systemctl", "--no-ask-password", "restart", unit], check=True)
        seconds.append(time.monotonic() - began)
        time.sleep(pause)
    return seconds


if __name__ == "__main__":
    how, unit, times, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    print(json.dumps(asyncio.run(by_bus(unit, times, pause)) if how == "bus" else by_systemctl(unit, times, pause)))
