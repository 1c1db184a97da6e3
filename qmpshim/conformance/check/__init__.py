"""Suites of checks on several builds: carried out, kept, compared, reported."""
