"""What the stories of the state machine are about, and what none of them tells."""

from collections.abc import Mapping

NOT_PROMISED: Mapping[str, str] = {
    "untold": "an old copy of the journal is put back before the Supervisor heard of what was begun since",
    "midway": "an old copy that was made while an activity was under way, before its decisive call (a reconfigure, or"
    " one that is put back in another boot: at any moment), is put back when nothing has begun since",
    "unheard": "such an old copy is put back, and the Supervisor does not answer within the two seconds",
    "twice": "a journal is lost, or a report forgotten, after an old copy was put back",
    "somebody": "somebody else starts or stops the runtime between the reading of A and the call",
    "restored": "the Supervisor itself is put back from a backup",
}
"""What no rule does, and why it is nobody's bug; see docs/recovery.md."""

THEMES: Mapping[str, frozenset[str]] = {
    "deaths": frozenset({"deaths"}),
    "runs that end": frozenset({"deaths", "runs", "reboots"}),
    "waits": frozenset({"deaths", "slowness", "runs"}),
    "expiry": frozenset({"deaths", "expiry", "slowness"}),
    "lists": frozenset({"deaths", "lists", "slowness"}),
    "reports": frozenset({"deaths", "network", "forgetting"}),
    "lost journals": frozenset({"deaths", "loss", "forgetting"}),
    "old journals": frozenset({"deaths", "copies"}),
    "old journals and boots": frozenset({"deaths", "copies", "reboots"}),
    "a bad disk": frozenset({"deaths", "disk", "runs"}),
}
"""What befalls the node in one story: few kinds of things, so that much of each happens; or all of them."""
ALL_OF_THEM = "all of it"
