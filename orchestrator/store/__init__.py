"""File systems, stage folders, tables."""
