"""Scenarios with a real guest on the chain, held against the model."""
