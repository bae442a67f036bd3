"""The command line. Every command imports what it needs when it runs, so that `--help` is instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from orchestrator.cli import results, runs, setup  # noqa: F401 - each registers its commands
from orchestrator.cli.common import app


def _fail(error: BaseException, code: int, as_json: bool) -> NoReturn:
    from orchestrator.scrub import scrub

    message = scrub(str(error))
    if as_json:
        typer.echo(json.dumps({"error": type(error).__name__, "message": message, "exit_code": code}))
    else:
        typer.secho(f"error: {message}", fg="red", err=True)
    raise SystemExit(code)


def _out_of_memory(error: BaseException) -> Exception:
    from orchestrator.errors import ResourceError
    from orchestrator.store.memory import memory_cap

    cap, reason = memory_cap(), (str(error).strip().splitlines() or ["an array does not fit"])[0]
    return ResourceError(
        f"memory ran out: {reason[:200]}. The {cap.of} is {cap.gb:.1f} GB; `vtsweep plan` says what workers need. "
        "What was finished is kept; lower how.batch_size or use a larger machine, and run the same command again."
    )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `vtsweep`, `python -m orchestrator` and the modules in `jobs/`; always exits."""
    from orchestrator import interrupt
    from orchestrator.errors import ResourceError, VtsweepError

    args = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in args
    result: Any = 1
    with interrupt.handled():
        try:
            result = app(args=args, prog_name="vtsweep", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            result = interrupt.exit_code() or 130
        except Exception as error:
            if interrupt.exit_code():
                pass  # what a library made of the interruption
            elif isinstance(error, VtsweepError):
                _fail(error, error.exit_code, as_json)
            # Click's own errors (unknown option, missing argument) know how to print themselves and their exit code.
            elif hasattr(error, "show") and hasattr(error, "exit_code"):
                error.show()
                raise SystemExit(error.exit_code) from None
            elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
                _fail(_out_of_memory(error), ResourceError.exit_code, as_json)
            else:
                raise
        result = interrupt.exit_code() or result
    if result in (130, 143):
        typer.secho("stopped; what was finished is kept. Run the same command again to resume.", fg="yellow", err=True)
    raise SystemExit(result if isinstance(result, int) else 0)
