"""The pace that the Supervisor sets for its fleet, in the answers to heartbeats."""

from dataclasses import dataclass

from agent.protocol import HeartbeatAnswer

SHORTEST_INTERVAL = 0.5
"""Seconds; a Supervisor that asks for more heartbeats gets no more."""


@dataclass(slots=True)
class Pace:
    """Seconds between heartbeats, and seconds that a poll is held; the first values hold until the first answer."""

    heartbeat_interval: float = 15.0
    poll_wait: float = 30.0

    def learn(self, answer: HeartbeatAnswer) -> None:
        """Take over what an answer says."""
        self.heartbeat_interval = max(SHORTEST_INTERVAL, answer.heartbeat_interval)
        self.poll_wait = answer.poll_wait
