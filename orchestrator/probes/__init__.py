"""Probes: attributes of the image predicted from each kept token's state, per layer. Arrays in, a table out."""
