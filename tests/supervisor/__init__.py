"""Tests of the reference Supervisor: real HTTP against the running application, and the real process."""
