"""The kinds of check, and the functions that carry them out."""
