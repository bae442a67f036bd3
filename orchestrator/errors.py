"""One exception tree. Each subclass is also the stdlib type a caller would expect, and survives pickling.

A message names the place, what was found, what was expected, and the nearest right name where there is one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VtsweepError(Exception):
    """Root of every error a user can mend. The command line prints its message and exits with `exit_code`."""

    exit_code = 1

    def __str__(self) -> str:
        """The message as any terminal and file takes it: half a surrogate pair of somebody's file is written out."""
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class ConfigError(VtsweepError, ValueError):
    """A sweep file, override or argument is wrong; raised before any work starts."""

    exit_code = 2


class DataError(VtsweepError, ValueError):
    """Input data (images, annotations, a table of attributes) is missing or malformed."""

    exit_code = 3


class ModelError(VtsweepError, ValueError):
    """A model cannot be found, loaded or used as asked."""

    exit_code = 4


class StorageError(VtsweepError, OSError):
    """Results cannot be written or read back: full disk, no permission, node-local path on a cluster."""

    exit_code = 5


class DamagedError(StorageError):
    """A file of ours is not what was written: what it stood for has to be done again."""


class AbsentError(StorageError):
    """No stage or table of that name: it was not begun, or does not write that."""


class ResourceError(VtsweepError, RuntimeError):
    """The machine or cluster cannot hold what was asked; running it would hang or run out of memory."""

    exit_code = 6


class StageError(VtsweepError, RuntimeError):
    """A stage did not finish. What it finished is kept; the same command resumes it."""

    exit_code = 7


class DivergedError(StageError):
    """Training diverged: an answer about the settings, which a search records, and not a fault of the machine."""


MAX_SHOWN = 60
"""Characters of a name that a message shows: names may be anybody's, as a table's columns are."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known names, else a list of them (at most 12)."""
    options = sorted({option if len(option) <= MAX_SHOWN else f"{option[:MAX_SHOWN]}..." for option in known})
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.55)
    if near:
        return " Did you mean " + " or ".join(repr(n) for n in near) + "?"
    if not options:
        return ""
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f" Known: {shown}."
