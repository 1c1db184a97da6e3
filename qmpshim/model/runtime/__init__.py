"""Coroutines without an event loop, the state they share, and their scheduler."""
