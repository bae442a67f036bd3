"""What a table's declaration is made of, and the columns that several tables share."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from orchestrator.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Column:
    dtype: type[pl.DataType] | pl.DataType
    meaning: str


@dataclass(frozen=True)
class Table:
    """A table's fixed columns. `open_columns` says what further columns (metrics, attributes) it may carry."""

    columns: dict[str, Column]
    key: tuple[str, ...]
    open_columns: str = ""

    def check(self, frame: pl.DataFrame, name: str) -> pl.DataFrame:
        """Return `frame` cast to the declared dtypes with declared columns first.

        Raises:
            DataError: a column is missing or an undeclared one is present.
        """
        missing = [c for c in self.columns if c not in frame.columns]
        if missing:
            hints = "".join(did_you_mean(c, frame.columns) for c in missing[:1])
            raise DataError(f"table {name}: columns {missing} are missing; present: {frame.columns}.{hints}")
        further = [c for c in frame.columns if c not in self.columns]
        if further and not self.open_columns:
            raise DataError(f"table {name}: columns {further} are not declared in schema.py")
        ordered = frame.select(*self.columns, *further)
        return ordered.cast({c: spec.dtype for c, spec in self.columns.items()})  # type: ignore[arg-type]


STRING, INT, FLOAT, BOOL = pl.String, pl.Int32, pl.Float64, pl.Boolean
IMAGE = Column(STRING, "image id, unique in its source")
CLUSTER = Column(STRING, "what makes questions depend on each other: a question file's group, else the image")
TAP = Column(STRING, "where in the model: decoder, projector, encoder, cross_k, cross_v, cross_out")
LAYER = Column(INT, "tap point; for the decoder 0 is the input of the first layer and L lies before the final norm")
GROUP = Column(STRING, "token group: vision or text")
N = Column(INT, "number of images or questions the value rests on")
LOW = Column(FLOAT, "lower end of the bootstrap or Wilson interval")
HIGH = Column(FLOAT, "upper end of the interval")
CHECKPOINT = Column(STRING, "`base`, or the digest of the fine-tuning trial the model comes from")
