"""A gated chain by hand: I/O held, released and recorded."""
