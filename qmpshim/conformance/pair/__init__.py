"""A COLO pair: what is done to it, and what must be true at every checkpoint."""
