"""NBD: the protocol without I/O, a client, a relay, gated storage."""
