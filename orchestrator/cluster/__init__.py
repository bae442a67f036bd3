"""Ray sessions, worker placement and job submission."""
