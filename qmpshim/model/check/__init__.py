"""Correctness conditions: linearizability, the invariants of every step, verdicts."""
