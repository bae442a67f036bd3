"""Capture: hidden states of a model, measured during its forward passes."""
