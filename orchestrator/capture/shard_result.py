"""The result of capturing a shard: tables and arrays to write, and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl


@dataclass(frozen=True)
class ShardResult:
    """The arguments of `Stage.write_shard`, and the numbers of captured and rejected images."""

    tables: Mapping[str, pl.DataFrame]
    arrays: Mapping[str, np.ndarray]
    extra: Mapping[str, Any]
    n_images: int
    n_rejected: int
