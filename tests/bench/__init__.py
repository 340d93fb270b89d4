"""Measures what the project promises of itself, beside what the same costs without it: `make bench`."""
