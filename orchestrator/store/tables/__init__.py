"""Schema of every table."""
