"""The node's durable ledger of activities: what is to be done, what was done, and what was said of it."""

from agent.journal.ledger import Journal
from agent.journal.lock import StateLock
from agent.journal.rows import GoingBack, JournaledCall, Row, RowState, SweepToken, Taken
from agent.journal.steps import KEEP
from agent.journal.wakeup import Wakeup

__all__ = [
    "KEEP",
    "GoingBack",
    "Journal",
    "JournaledCall",
    "Row",
    "RowState",
    "StateLock",
    "SweepToken",
    "Taken",
    "Wakeup",
]
