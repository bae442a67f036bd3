"""Probes: what each kept token knows about the image, layer by layer. Arrays in, a table out."""
