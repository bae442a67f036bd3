"""The main flow of a study."""
