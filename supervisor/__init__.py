"""The reference Supervisor: the public Activities API and the agent's side of it."""
