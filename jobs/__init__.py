"""Entry points for `ray job submit`; run with `python -m jobs.NAME`."""
