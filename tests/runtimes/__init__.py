"""Tests of what acts on the node: real processes, real servers, a real disk."""
