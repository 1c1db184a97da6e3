"""Findings replayed here or exported as stand-alone scripts."""
