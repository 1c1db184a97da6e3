"""Findings, and how they are shown and stored."""
