"""`python -m orchestrator` is `vtsweep`."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
