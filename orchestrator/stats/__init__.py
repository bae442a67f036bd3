"""Intervals, tests, corrections and verdicts."""
