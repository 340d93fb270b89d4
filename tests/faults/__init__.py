"""The fault campaign: the real agent under injected faults, judged from outside. See docs/reliability.md."""
