"""The agent on a real, booted systemd, installed as a user would; the Supervisor is outside. Needs root."""
