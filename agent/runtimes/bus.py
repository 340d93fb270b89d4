"""One connection to the system bus, for calls to systemd and its signals: owned by one task, which makes it again.

Low-level messages only: what is called is known, and introspecting it would cost more than the calls. A signal counts
only when systemd's own connection sent it, for anybody may send one to ours.

    BusError
    ├── AwayError      nobody answered; `uncertain` says whether the call may have arrived all the same
    └── RefusedError   systemd answered with an error; `name` is the D-Bus error's
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import structlog
from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.errors import AuthError, DBusError, InvalidAddressError

log = structlog.get_logger(__name__)

SYSTEMD = "org.freedesktop.systemd1"
MANAGER_PATH = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"
_BUS, _BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"

CALL_TIMEOUT = 25.0
"""Seconds that one call may take, polkit's answer included: the D-Bus default."""
READ_TIMEOUT = 5.0
"""Seconds that one reading may take: a systemd that hangs must not hold up the heartbeat for long."""
CONNECT_TIMEOUT = 10.0
"""Seconds to connect and to introduce ourselves."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two tries to connect, doubling, with jitter."""
STABLE_AFTER = 5.0
"""Seconds after which a connection that ended counts as a good one, so that the next try is made soon."""

_ERROR = "org.freedesktop.DBus.Error."
_NOBODY_THERE = {_ERROR + word for word in ("ServiceUnknown", "NameHasNoOwner", "LimitsExceeded")}
_NO_ANSWER = {_ERROR + word for word in ("NoReply", "Disconnected", "Timeout", "TimedOut")}
_CONNECTION_ERRORS = (OSError, EOFError, AuthError, InvalidAddressError, DBusError)


class BusError(Exception):
    """A call to systemd that did not succeed."""


class AwayError(BusError):
    """Nobody answered.

    Args:
        cause: Why, for people.
        uncertain: Whether the call may have arrived, and have its effect.
    """

    def __init__(self, cause: str, *, uncertain: bool = False) -> None:
        super().__init__(cause)
        self.uncertain = uncertain


class RefusedError(BusError):
    """Systemd answered with an error.

    Args:
        name: Of the D-Bus error.
        text: What it says.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


def signal_rule(**parts: str) -> str:
    """Write a match rule for a signal of systemd."""
    return ",".join(f"{key}='{value}'" for key, value in {"type": "signal", "sender": SYSTEMD, **parts}.items())


OnSignal = Callable[[str, str, list[Any]], None]
"""Is told the path, the member and the arguments of a signal."""


class SystemdBus:
    """Systemd's end of the system bus, shared by all units of an agent.

    Args:
        address: Of the bus; the system's own when None.
    """

    def __init__(self, address: str | None = None) -> None:
        self.session = 0
        """Grows each time that systemd is met anew: what it remembered of us may be gone."""
        self._address = address
        self._rules: dict[str, None] = {signal_rule(interface=MANAGER, member="Reloading"): None}
        self._listeners: list[tuple[OnSignal, Callable[[], None]]] = []
        self._openers = 0
        self._connection: MessageBus | None = None
        self._owner: str | None = None
        self._why = "it was not asked yet"
        self._tried = asyncio.Event()
        self._up = asyncio.Event()
        self._new_owner = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def listen(self, on_signal: OnSignal, on_change: Callable[[], None]) -> None:
        """Have somebody told, for as long as this object lives.

        Args:
            on_signal: Called with each signal, also with those that others wanted.
            on_change: Called when systemd came within reach, or went out of it.
        """
        self._listeners.append((on_signal, on_change))

    async def open(self) -> None:
        """Begin to connect, and wait for how the first try ends; it is tried again for as long as it is open."""
        self._openers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._keep_connected(), name="systemd bus")
        await self._tried.wait()

    async def close(self) -> None:
        """Disconnect when everybody who opened it has closed it; closing once more does nothing."""
        self._openers = max(0, self._openers - 1)
        if self._task is not None and not self._openers:
            self._up.clear()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def wait_until_up(self, seconds: float) -> None:
        """Wait until systemd can be asked, but no longer than so many seconds; the next call says if it cannot."""
        await _wait_for(self._up, seconds)

    async def call(
        self, member: str, signature: str = "", *body: Any, path: str = MANAGER_PATH, interface: str = MANAGER
    ) -> list[Any]:
        """Call systemd.

        Raises:
            AwayError: Nobody answered.
            RefusedError: It answered with an error.
        """
        connection = self._connection
        if connection is None or not self._up.is_set():
            raise AwayError(self._why)
        within = READ_TIMEOUT if interface == PROPERTIES else CALL_TIMEOUT
        return await _ask(connection, member, signature, *body, path=path, interface=interface, within=within)

    async def watch(self, rule: str) -> None:
        """Have more signals sent, also after each time that it connects again; a rule that is known does nothing."""
        if rule in self._rules:
            return
        self._rules[rule] = None
        connection = self._connection
        if connection is None:
            return
        try:
            await _match(connection, rule)
        except BusError as error:  # all are asked for at the next connection, which is made at once
            log.warning("systemd.not_watched", rule=rule, cause=str(error))
            connection.disconnect()

    # --- the task that owns the connection -----------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        pause = FIRST_PAUSE
        try:
            while True:
                began = time.monotonic()
                try:
                    await self._live_once()
                except _NeverMetError as error:
                    self._lost(str(error))
                except Exception:  # whatever is wrong with one connection, the next one is tried
                    log.exception("systemd.bus_fault")
                    self._lost("a fault of the agent ended the connection, see its log")
                self._tried.set()
                if time.monotonic() - began > STABLE_AFTER:
                    pause = FIRST_PAUSE
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            self._disconnect()

    async def _live_once(self) -> None:
        """Connect, and stay until the connection ends.

        Raises:
            _NeverMetError: There was no connection.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                connection = await self._connect()
        except TimeoutError:
            msg = f"the bus did not answer within {CONNECT_TIMEOUT:g} s"
            raise _NeverMetError(msg) from None
        except (*_CONNECTION_ERRORS, BusError) as error:
            msg = f"cannot connect to the bus: {_words(error)}"
            raise _NeverMetError(msg) from error
        ended = asyncio.ensure_future(connection.wait_for_disconnect())  # type: ignore[no-untyped-call] # the library's
        try:
            while not ended.done():
                self._new_owner.clear()
                await self._meet(connection)
                self._tried.set()
                await self._stay(ended)
        finally:
            self._lost("the connection to the bus ended")
            self._disconnect()
            await asyncio.wait({ended}, timeout=FIRST_PAUSE)  # so that its socket is closed
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def _stay(self, ended: "asyncio.Future[None]") -> None:
        """Wait until the connection ends, or systemd has to be met again."""
        again = asyncio.ensure_future(self._new_owner.wait())
        # One that did not answer is asked again after a while, also when no signal tells that it is back.
        patience = None if self._up.is_set() else LONGEST_PAUSE
        try:
            either: set[asyncio.Future[Any]] = {ended, again}
            await asyncio.wait(either, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            again.cancel()
            await asyncio.gather(again, return_exceptions=True)

    async def _connect(self) -> MessageBus:
        connection = _Connection(self._address, BusType.SYSTEM)
        connection.add_message_handler(self._receive)
        try:
            await connection.connect()
            self._connection = connection
            owner_changed = f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'"
            for rule in (owner_changed, *self._rules):
                await _match(connection, rule)
        except BaseException:
            self._disconnect()
            raise
        return connection

    async def _meet(self, connection: MessageBus) -> None:
        """Learn which connection is systemd's, and have it send its signals: it sends none unasked."""
        try:
            (self._owner,) = await _ask(
                connection, "GetNameOwner", "s", SYSTEMD, destination=_BUS, path=_BUS_PATH, interface=_BUS
            )
            try:
                await _ask(connection, "Subscribe")
            except RefusedError as error:
                if error.name != "org.freedesktop.systemd1.AlreadySubscribed":
                    raise
        except BusError as error:
            self._lost(f"systemd is not on the bus: {error}")
            return
        self.session += 1
        self._up.set()
        log.info("systemd.met", owner=self._owner)
        self._tell_change()

    def _lost(self, why: str) -> None:
        self._owner = None
        self._why = why
        if self._up.is_set() or not self._tried.is_set():
            log.warning("systemd.lost", cause=why)
            self._up.clear()
            self._tell_change()

    def _tell_change(self) -> None:
        for _, on_change in self._listeners:
            on_change()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and connection.connected:
            connection.disconnect()

    def _receive(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.sender == _BUS and message.member == "NameOwnerChanged" and message.body[0] == SYSTEMD:
            self._lost("systemd is just starting again")
            self._new_owner.set()
        elif message.sender == self._owner:
            for on_signal, _ in self._listeners:
                on_signal(message.path or "", message.member or "", message.body)


class _NeverMetError(Exception):
    """There was no connection; the text says why."""


class _Connection(MessageBus):
    """A connection whose failed writes are told by the call that waits for an answer, and not once more by asyncio."""

    def send(self, msg: Message) -> "asyncio.Future[None]":  # type: ignore[override] # as its own base class does
        sent: asyncio.Future[None] = super().send(msg)
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())
        return sent


async def _ask(
    connection: MessageBus,
    member: str,
    signature: str = "",
    *body: Any,
    destination: str = SYSTEMD,
    path: str = MANAGER_PATH,
    interface: str = MANAGER,
    within: float = READ_TIMEOUT,
) -> list[Any]:
    message = Message(
        destination=destination, path=path, interface=interface, member=member, signature=signature, body=list(body)
    )
    if not connection.connected:
        cause = "the connection to the bus ended"
        raise AwayError(cause)
    try:
        async with asyncio.timeout(within):
            reply = await connection.call(message)
    except TimeoutError:
        cause = f"no answer to {member} within {within:g} s"
        raise AwayError(cause, uncertain=True) from None
    except (OSError, EOFError) as error:
        cause = f"the connection to the bus ended before {member} was answered"
        raise AwayError(cause, uncertain=True) from error
    return _read(reply, member)


def _read(reply: Message | None, member: str) -> list[Any]:
    if reply is None:  # the library's way to say that this side disconnected
        cause = f"the connection to the bus was closed before {member} was answered"
        raise AwayError(cause, uncertain=True)
    if reply.message_type is not MessageType.ERROR:
        return list(reply.body)
    name = reply.error_name or "an error without a name"
    text = str(reply.body[0]) if reply.body else name
    if name in _NOBODY_THERE or name in _NO_ANSWER:
        raise AwayError(text, uncertain=name in _NO_ANSWER)
    raise RefusedError(name, text)


async def _match(connection: MessageBus, rule: str) -> None:
    await _ask(connection, "AddMatch", "s", rule, destination=_BUS, path=_BUS_PATH, interface=_BUS)


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
