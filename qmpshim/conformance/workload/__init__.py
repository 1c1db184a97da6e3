"""Seeded workloads: generated, run against a real chain and the model, shrunk."""
