"""What capturing a shard gives: the tables and arrays that are written, and the counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl


@dataclass(frozen=True)
class ShardResult:
    """What `Stage.write_shard` takes, and how many images were captured and rejected."""

    tables: Mapping[str, pl.DataFrame]
    arrays: Mapping[str, np.ndarray]
    extra: Mapping[str, Any]
    n_images: int
    n_rejected: int
