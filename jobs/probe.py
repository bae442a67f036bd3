"""`python -m jobs.probe ...` is `vtsweep probe ...`, for `ray job submit`."""

import sys

from orchestrator.cli.app import main

if __name__ == "__main__":
    main(["probe", *sys.argv[1:]])
