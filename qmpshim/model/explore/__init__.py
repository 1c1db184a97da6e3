"""Exploration of any system that offers choices: reductions, known states, sampling."""
