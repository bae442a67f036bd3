"""`python -m jobs.report ...` is `vtsweep report ...`, for `ray job submit`."""

import sys

from orchestrator.cli.app import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
