"""Whether a build can be relied on, by use."""
