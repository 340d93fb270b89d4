"""What talks to the Supervisor: receiver, reporter, heartbeat, identity."""
