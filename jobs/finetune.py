"""`python -m jobs.finetune ...` is `vtsweep finetune ...`, for `ray job submit`."""

import sys

from orchestrator.cli.app import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
