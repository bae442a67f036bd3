"""`python -m jobs.correlate ...` is `vtsweep correlate ...`, for `ray job submit`."""

import sys

from orchestrator.cli.app import main

if __name__ == "__main__":
    main(["correlate", *sys.argv[1:]])
