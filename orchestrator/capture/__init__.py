"""Capture: a model's inner states, measured while it runs."""
