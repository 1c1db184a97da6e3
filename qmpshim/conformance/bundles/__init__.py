"""Replay bundles on disk."""
