"""Real guests: a small Linux and a boot sector."""
