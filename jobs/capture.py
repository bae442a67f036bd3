"""`python -m jobs.capture ...` is `vtsweep capture ...`, for `ray job submit`."""

import sys

from orchestrator.cli.app import main

if __name__ == "__main__":
    main(["capture", *sys.argv[1:]])
