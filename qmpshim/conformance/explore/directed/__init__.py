"""Directed cases: sequences of commands that lead into QEMU's error paths."""
