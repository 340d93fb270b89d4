"""Servers that misbehave on request."""
