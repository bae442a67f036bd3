"""Kinds of text columns: each value converts exactly to its column's kind, or an error names file, row and column."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

import polars as pl

from orchestrator.config.data import AttributeKind
from orchestrator.data.attributes import Kind
from orchestrator.errors import DataError

KINDS: dict[AttributeKind, Kind] = {"count": "count", "number": "continuous", "category": "categorical"}
"""Names of kinds in a study's settings."""
MOSTLY = 0.5
"""From this share of numbers on, a column of undeclared kind is numeric, and other values in it are errors."""

WHOLE = r"^[+-]?(0|[1-9][0-9]*)$"
_ROUND = r"^[+-]?(0|[1-9][0-9]*)(\.0*)?$"
NUMBER = r"^[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_ALMOST = r"^(?i)[+-]?([0-9]+,[0-9]+|[0-9]{1,3}([ ,.'][0-9]{3})+([.,][0-9]+)?|inf(inity)?|[0-9.]+ ?%)$"
"""Ambiguous number formats: decimal commas, grouped digits, per cent."""


@dataclass(frozen=True)
class Column:
    """A column with its kind: Int64, Float64 or String; missing values are null."""

    kind: Kind
    values: pl.Series
    missing: dict[str, int] = field(default_factory=dict)
    """Number of occurrences of each spelling of a missing value."""


_FIRST_ROW = 2
"""Row of the first value in a file, for messages; row 1 is the header."""


def type_column(text: pl.Series, file: str, kind: AttributeKind | None, missing: Collection[str]) -> Column:
    """Convert a column of text.

    Args:
        text: strings; null and empty are missing. Surrounding spaces are ignored.
        file: the file's name, for messages.
        kind: its declared kind; by its values when absent: whole numbers are counts, other numbers continuous, anything
            else categorical. Numbers with leading zeros (`007`) are names.
        missing: spellings of missing values.

    Raises:
        DataError: a value does not have the declared kind, or the column is mostly numbers and one value is not; a
            number is infinite, or does not fit 64 bits exactly.
    """
    plain = text.str.strip_chars().replace("", None)
    is_missing = plain.is_in(list(missing)) & plain.is_not_null()
    spellings = dict(plain.filter(is_missing).value_counts(sort=True).iter_rows())
    if n_empty := plain.null_count():
        spellings[""] = n_empty
    values = plain.zip_with(~is_missing, pl.Series([None], dtype=pl.String).new_from_index(0, len(plain)))
    chosen: AttributeKind
    number = values.str.contains(NUMBER)  # null if missing
    if kind is None:
        n, n_numbers = values.count(), int(number.sum())
        n_almost = int(values.str.contains(_ALMOST).sum())
        mostly = n > 0 and (n_numbers + n_almost) >= MOSTLY * n
        chosen = "category" if not mostly else "count" if values.str.contains(WHOLE).all() else "number"
    else:
        chosen = kind
    if chosen == "category":
        return Column("categorical", values, spellings)
    fits = values.str.contains(_ROUND) if chosen == "count" else number
    if not fits.all():
        row = int((~fits).fill_null(False).arg_max() or 0)
        raise DataError(_odd_value(values, row, file, kind, chosen))
    return Column(KINDS[chosen], _numbers(values, file, chosen), spellings)


def _odd_value(values: pl.Series, row: int, file: str, kind: AttributeKind | None, chosen: AttributeKind) -> str:
    place = f"{file}, row {row + _FIRST_ROW}, column {values.name!r}: found {values[row]!r}"
    if kind is not None:
        expected = "a whole number" if chosen == "count" else "a number with a decimal point"
        return f"{place}; expected {expected} or a missing value (data.attributes: {{{values.name}: {kind}}})"
    if re.fullmatch(r"(?i)[+-]?inf(inity)?", values[row]):
        return f"{place}, which is infinite; expected a number or a missing value"
    n_numbers = int(values.str.contains(NUMBER).sum())
    return (
        f"{place}, but {n_numbers} of {values.count()} values are numbers. Write numbers with a decimal point and no "
        f"grouping, add a spelling of missing values to data.missing, or declare data.attributes: {{{values.name}: "
        "category}"
    )


def _numbers(values: pl.Series, file: str, chosen: AttributeKind) -> pl.Series:
    if chosen == "count":
        # Polars' parser does not accept a plus sign.
        integers = values.str.replace(r"\.0*$", "").str.strip_prefix("+").cast(pl.Int64, strict=False)
        if integers.null_count() > values.null_count():
            row = int((integers.is_null() & values.is_not_null()).arg_max() or 0)
            raise DataError(
                f"{file}, row {row + _FIRST_ROW}, column {values.name!r}: {values[row]} has more than 64 bits"
            )
        return integers
    number = values.str.strip_prefix("+").cast(pl.Float64, strict=False)
    long = values.str.contains(r"^[+-]?[0-9]{16,}$").fill_null(False)
    for row in long.arg_true().to_list():
        if int(values[row]) != int(number[row]):
            raise DataError(
                f"{file}, row {row + _FIRST_ROW}, column {values.name!r}: {values[row]} has more digits than a float64"
            )
    broken = ((number.is_null() | number.is_infinite()) & values.is_not_null()).fill_null(False)
    if broken.any():
        row = int(broken.arg_max() or 0)
        raise DataError(f"{file}, row {row + _FIRST_ROW}, column {values.name!r}: {values[row]} is infinite in float64")
    return number
