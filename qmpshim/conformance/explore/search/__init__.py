"""Exploration of scenarios in worker processes, and minimization of what is found."""
