"""The model of a chain kept in step with the commands and the I/O that pass."""
