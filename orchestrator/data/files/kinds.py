"""Kinds of the free attributes of question files, over all rows; numeric text, as in CSV, counts as numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from orchestrator.config.data import AttributeKind
from orchestrator.data.attributes import Kind
from orchestrator.data.columns import MOSTLY, NUMBER, WHOLE
from orchestrator.errors import DataError, did_you_mean


@dataclass
class _Seen:
    """What the values of one attribute look like."""

    n_whole: int = 0
    n_numbers: int = 0
    n_texts: int = 0
    first_text: str = ""


class Kinds:
    """Accumulates columns of attributes and determines their kinds.

    Args:
        declared: kinds from the study's settings.
        missing: spellings of missing values.
    """

    def __init__(self, declared: Mapping[str, AttributeKind], missing: Collection[str]) -> None:
        self.declared, self.missing = declared, frozenset(missing)
        self.seen: dict[str, _Seen] = {}

    def add(self, key: str, values: Sequence[Any], place: Callable[[int], str]) -> Float[np.ndarray, " n"]:
        """Add n values of an attribute; returns them as float64 (n,), NaN for values that are not numbers.

        Args:
            place: gives file and line of a value by its index.
        """
        tally = self.seen.setdefault(key, _Seen())
        if str in set(map(type, values)):
            read = {value: as_number(value, self.missing) for value in set(values) if type(value) is str}
            values = [read[value] if type(value) is str else value for value in values]
        kinds = list(map(type, values))
        if n_texts := kinds.count(str):
            first = kinds.index(str)
            tally.first_text = tally.first_text or f"{place(first)}, field {key!r}: found {values[first]!r:.60}"
            tally.n_texts += n_texts
        n_whole, n_real = kinds.count(int), kinds.count(float)
        tally.n_whole += n_whole
        tally.n_numbers += n_whole + n_real
        if n_whole + n_real == len(values):
            return np.array(values, dtype=np.float64)
        return np.array([v if type(v) in (int, float) else np.nan for v in values], dtype=np.float64)

    def found(self) -> dict[str, Kind]:
        """Kind of each attribute.

        Raises:
            DataError: a value does not have the declared kind, or most values are numbers and one is not.
        """
        for key in self.declared:
            if key not in self.seen:
                raise DataError(f"data.attributes: no row has a field {key!r}.{did_you_mean(key, self.seen)}")
        return {key: self._kind(key, tally) for key, tally in self.seen.items()}

    def _kind(self, key: str, tally: _Seen) -> Kind:
        n = tally.n_numbers + tally.n_texts
        declared = self.declared.get(key)
        if declared == "category" or (declared is None and tally.n_numbers < max(1.0, MOSTLY * n)):
            return "categorical"
        if tally.n_texts:
            raise DataError(
                f"{tally.first_text}, but {tally.n_numbers} of {n} values are numbers; add a spelling of missing values"
                f" to data.missing, or declare data.attributes: {{{key}: category}}"
            )
        if declared == "count" and tally.n_whole < n:
            raise DataError(f"data.attributes: {key} is declared a count, and {n - tally.n_whole} values are not whole")
        return "continuous" if declared == "number" or tally.n_whole < n else "count"


def as_number(value: Any, missing: Collection[str]) -> int | float | str | None:
    """A value as a number if it is one, in any notation; else the text; None if it is missing."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not text or text in missing:
        return None
    if not re.fullmatch(NUMBER, text) or not math.isfinite(float(text)):
        return text
    return int(text) if re.fullmatch(WHOLE, text) else float(text)
