"""Directed cases: fixed sequences of commands and I/O, for what no schedule changes."""
