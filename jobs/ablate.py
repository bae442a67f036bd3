"""`python -m jobs.ablate ...` is `vtsweep ablate ...`, for `ray job submit`."""

import sys

from orchestrator.cli.app import main

if __name__ == "__main__":
    main(["ablate", *sys.argv[1:]])
