"""Gated storage: an NBD server whose requests are held, released or failed from outside."""
