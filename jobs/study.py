"""`python -m jobs.study ...` is `vtsweep run ...`, for `ray job submit`."""

import sys

from orchestrator.cli.app import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
