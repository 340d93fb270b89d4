"""What decides: lanes, the four actions, recovery after a crash."""
