"""Interactive control of a gated chain: I/O held, released and recorded."""
