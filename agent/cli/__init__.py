"""The commands of `iggy-agent`; each imports only what it needs, when it needs it."""

from agent.cli.dispatch import main

__all__ = ["main"]
