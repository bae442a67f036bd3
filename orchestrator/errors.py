"""Exception hierarchy. Each subclass also derives from the matching stdlib type, and can be pickled.

A message names the place, the found and the expected value, and the closest known name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MAX_WORD, MAX_MESSAGE = 300, 4000
"""Most characters of one word and of a whole message: both may quote a user's file."""
LONG_WORD = re.compile(rf"\S{{{MAX_WORD},}}")


class VtsweepError(Exception):
    """Base class of errors that a user can fix. The command line prints its message and exits with `exit_code`."""

    exit_code = 1

    def __str__(self) -> str:
        """The message, encodable (unpaired surrogates escaped), with very long words and texts cut in the middle."""
        text = super().__str__().encode("utf-8", "backslashreplace").decode()
        return cut(LONG_WORD.sub(lambda word: cut(word[0], MAX_WORD), text), MAX_MESSAGE)


def cut(text: str, length: int) -> str:
    """A text of at most `length` characters: what is longer keeps its beginning and its end."""
    return text if len(text) <= length else f"{text[: length // 2]}...{text[len(text) - length // 2 + 3 :]}"


class ConfigError(VtsweepError, ValueError):
    """A sweep file, override or argument is invalid; raised before work starts."""

    exit_code = 2


class DataError(VtsweepError, ValueError):
    """Input data (images, annotations, a table of attributes) is missing or malformed."""

    exit_code = 3


class ModelError(VtsweepError, ValueError):
    """A model cannot be found, loaded or used with these settings."""

    exit_code = 4


class StorageError(VtsweepError, OSError):
    """Results cannot be written or read back: full disk, no permission, node-local path on a cluster."""

    exit_code = 5


class DamagedError(StorageError):
    """A result file differs from its checksum; its stage or shard must be computed again."""


class AbsentError(StorageError):
    """No such stage or table: the stage was not started, or does not write that table."""


class ResourceError(VtsweepError, RuntimeError):
    """The machine or cluster has too few resources; the run would hang or run out of memory."""

    exit_code = 6


class StageError(VtsweepError, RuntimeError):
    """A stage did not finish. Finished work is kept; the same command resumes it."""

    exit_code = 7


class DivergedError(StageError):
    """Training diverged: a property of the settings, recorded by a search, not a fault of the machine."""


MAX_SHOWN = 60
"""Maximum length of a name in a message: names may be user input, such as columns of a table."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` with the closest known name, else a list of names (at most 12)."""
    options = sorted({option if len(option) <= MAX_SHOWN else f"{option[:MAX_SHOWN]}..." for option in known})
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.55)
    if near:
        return " Did you mean " + " or ".join(repr(n) for n in near) + "?"
    if not options:
        return ""
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f" Known: {shown}."
