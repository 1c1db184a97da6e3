"""QMP clients."""
