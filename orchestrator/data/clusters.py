"""Clusters of dependent rows: several questions about one image, or the members of a group of a question file.

Column `cluster` of table `images` names the cluster. Statistics that assume independent images use one row per cluster;
probes hold out whole clusters.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence

import polars as pl

CLUSTER = "cluster"
"""Attribute that names the cluster of a row."""


def independent_rows(images: pl.DataFrame) -> pl.DataFrame:
    """One row of each cluster, the one whose id has the lowest hash; all rows without a cluster.

    Args:
        images: table `images`.
    """
    if CLUSTER not in images.columns:
        return images
    hashes = pl.Series("hash", [zlib.crc32(name.encode()) for name in images["image_id"]], dtype=pl.UInt32)
    keyed = images.with_columns(hashes, unit=pl.coalesce(CLUSTER, "image_id")).with_row_index("place")
    kept = keyed.sort("hash", "image_id").unique("unit", keep="first", maintain_order=True)
    return kept.sort("place").drop("place", "hash", "unit")


def first_of_like(*keys: Sequence[Hashable | None]) -> list[int]:
    """For each row the first row of its connected component, where rows with an equal key are connected; None is no
    key.

    Args:
        keys: sequences of equal length, such as content of the image and cluster.
    """
    first = list(range(len(keys[0])))

    def root(row: int) -> int:
        while first[row] != row:
            first[row] = first[first[row]]
            row = first[row]
        return row

    for values in keys:
        first_row: dict[Hashable, int] = {}
        for row, value in enumerate(values):
            if value is None:
                continue
            lower, higher = sorted((root(first_row.setdefault(value, row)), root(row)))
            first[higher] = lower
    return [root(row) for row in range(len(first))]
