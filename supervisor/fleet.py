"""The nodes as the server keeps them in memory, so that ten thousand idle polls cost no query at all.

It follows the store: what is here was committed before. Used from the event loop only.
"""

import asyncio
import contextlib
import heapq
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from supervisor.activities import Dispatched
from supervisor.nodes import Admission, Admitted, Enrolled, NodeRow, TokenRow, decommissioned, identity_in_use
from supervisor.problems import Code, ProblemError

MAX_POLLS = 4
"""Polls that are held for one node; one more lets go of the oldest, whose client is long gone."""
MAX_CACHED_CONFIG_BYTES = 8 * 1024 * 1024


@dataclass(slots=True)
class Beat:
    """The latest heartbeat of a node."""

    content: str
    received_at: int

    def parsed(self) -> dict[str, Any]:
        """Return it as it is answered to users."""
        beat: dict[str, Any] = json.loads(self.content)
        return beat


@dataclass(slots=True)
class Node:
    """One node: what it has to do, and who speaks for it."""

    id: int
    instance: str | None
    revision: int
    last_sequence: int
    removed: bool = False
    open: dict[int, Dispatched] = field(default_factory=dict)
    """What is processing, by sequence; in the order of the sequences, for that is how they are given out."""
    beat: Beat | None = None
    held: list[asyncio.Future[bool]] = field(default_factory=list)

    def after(self, sequence: int) -> Iterator[Dispatched]:
        """Yield what is processing above a sequence, in order."""
        # A copy, for the caller may wait between two of them; an idle node, the usual case, copies nothing.
        return (activity for number, activity in list(self.open.items()) if number > sequence)

    def wake(self) -> None:
        """Let all held polls look again."""
        held, self.held = self.held, []
        for poll in held:
            if not poll.done():
                poll.set_result(True)

    async def changed(self, seconds: float) -> bool:
        """Wait until something happened to this node, at most so long; tell whether it did."""
        poll: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.held.append(poll)
        if len(self.held) > MAX_POLLS and not (oldest := self.held.pop(0)).done():
            oldest.set_result(False)
        try:
            async with asyncio.timeout(seconds):
                return await poll
        except TimeoutError:
            return False
        finally:
            with contextlib.suppress(ValueError):  # whoever woke it has taken it off the list
                self.held.remove(poll)

    def check(self, instance: str) -> None:
        """Check that a call may still be answered.

        Raises:
            ProblemError: The node was removed (410), or a newer instance has its identity (409).
        """
        if self.removed:
            raise decommissioned(self.id)
        if self.instance != instance:
            raise identity_in_use(self.id, self.instance)


class Fleet:
    """All nodes, and the tokens that prove them."""

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        self._tokens: dict[str, TokenRow] = {}
        self._tokens_of: dict[int, list[str]] = {}
        self._unsaved: set[int] = set()
        self._configs: OrderedDict[int, bytes] = OrderedDict()
        self._expiries: list[tuple[int, int, int]] = []
        """A heap: when it expires, node, sequence."""
        self.stopping = False

    def load(self, nodes: Iterable[NodeRow], tokens: Iterable[TokenRow], activities: Iterable[Dispatched]) -> None:
        """Take over what the store holds."""
        for row in nodes:
            self._add(row)
        for token in tokens:
            self._tokens[token.hash] = token
            self._tokens_of.setdefault(token.node_id, []).append(token.hash)
        for activity in activities:
            self._open(activity)

    def _open(self, activity: Dispatched) -> Node:
        node = self._nodes[activity.node_id]
        node.open[activity.sequence] = activity
        heapq.heappush(self._expiries, (activity.expires_at, activity.node_id, activity.sequence))
        return node

    def _add(self, row: NodeRow) -> Node:
        node = Node(row.id, row.instance, row.revision, row.last_sequence, removed=row.removed)
        self._nodes[row.id] = node
        return node

    def authenticate(self, token_hash: str, now: int) -> tuple[Node, TokenRow]:
        """Find the node that a token proves.

        Raises:
            ProblemError: The token is unknown or expired (401), or the node was removed (410).
        """
        token = self._tokens.get(token_hash)
        if token is None:
            raise ProblemError(Code.NODE_TOKEN_INVALID, "cannot authenticate: the node token is missing or unknown")
        node = self._nodes[token.node_id]
        if node.removed:
            raise decommissioned(node.id)
        if token.expires_at <= now:
            raise ProblemError(Code.NODE_TOKEN_EXPIRED, "cannot authenticate: the node token has expired")
        return node, token

    def enrolled(self, enrolled: Enrolled) -> None:
        """Take in a node that enrolled."""
        if enrolled.node.id not in self._nodes:
            self._add(enrolled.node)
        self.replace_tokens(enrolled.node.id, enrolled.tokens)

    def admitted(self, admitted: Admitted) -> None:
        """Take in what a call had that was new; polls of a replaced instance are let go."""
        node = self._nodes[admitted.node_id]
        node.revision = admitted.revision
        replaced = node.instance != admitted.instance
        node.instance = admitted.instance
        if admitted.tokens is not None:
            self.replace_tokens(node.id, admitted.tokens)
        if replaced:
            node.wake()

    def replace_tokens(self, node_id: int, tokens: list[TokenRow]) -> None:
        """Take in the tokens that a node has now."""
        for former in self._tokens_of.get(node_id, []):
            self._tokens.pop(former, None)
        self._tokens.update((token.hash, token) for token in tokens)
        self._tokens_of[node_id] = [token.hash for token in tokens]

    def dispatched(self, activities: Iterable[Dispatched]) -> None:
        """Give activities to their nodes, whose polls are answered at once."""
        for activity in activities:
            node = self._open(activity)
            node.last_sequence = activity.sequence
            node.wake()

    def closed(self, activities: Iterable[tuple[int, int]]) -> None:
        """Take activities away that are processing no longer: node and sequence of each."""
        for node_id, sequence in activities:
            self._nodes[node_id].open.pop(sequence, None)

    def any_expired(self, before: int) -> bool:
        """Tell whether something is processing that expired before a moment."""
        while self._expiries and self._expiries[0][0] < before:
            _, node_id, sequence = self._expiries[0]
            if sequence in self._nodes[node_id].open:
                return True
            heapq.heappop(self._expiries)
        return False

    def removed(self, node_ids: Iterable[int]) -> None:
        """Let go of nodes that were removed."""
        for node_id in node_ids:
            node = self._nodes.get(node_id)
            if node is not None and not node.removed:
                node.removed = True
                node.open.clear()
                node.wake()

    def beat(self, node: Node, content: str, now: int) -> None:
        """Keep a node's heartbeat; it is saved with those of others, soon."""
        node.beat = Beat(content, now)
        self._unsaved.add(node.id)

    def take_unsaved(self) -> list[tuple[int, str, int]]:
        """Return the heartbeats that are not saved yet: node, JSON, when it came."""
        unsaved, self._unsaved = self._unsaved, set()
        beats = ((node_id, self._nodes[node_id].beat) for node_id in unsaved)
        return [(node_id, beat.content, beat.received_at) for node_id, beat in beats if beat is not None]

    def latest_beat(self, node_id: int) -> Beat | None:
        """Return a node's latest heartbeat, if there was one since the server started."""
        node = self._nodes.get(node_id)
        return None if node is None else node.beat

    def stop(self) -> None:
        """Let go of every held poll, now and from now on."""
        self.stopping = True
        for node in self._nodes.values():
            node.wake()

    def cached_config(self, config_id: int) -> bytes | None:
        """Return a config's JSON if it was asked for lately."""
        if (content := self._configs.get(config_id)) is not None:
            self._configs.move_to_end(config_id)
        return content

    def cache_config(self, config_id: int, content: bytes) -> None:
        """Keep a config's JSON: a whole deployment asks for the same one."""
        self._configs[config_id] = content
        while sum(map(len, self._configs.values())) > MAX_CACHED_CONFIG_BYTES:
            self._configs.popitem(last=False)


def admission_of(node: Node, token: TokenRow, instance: str, revision: int) -> Admission | None:
    """Return what the store has to be told about a call; nothing for almost every one."""
    if node.instance == instance and node.revision >= revision and token.used:
        return None
    return Admission(node.id, token.hash, instance, revision, first_use=not token.used)
