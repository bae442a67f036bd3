"""Compression against image attributes."""
