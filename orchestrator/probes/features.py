"""Reads a capture's features one (tap, layer) slice at a time; each byte is read once, on any storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from orchestrator.errors import ConfigError, DataError, did_you_mean
from orchestrator.store.stage_folder import Stage

PIXELS = "pixels"
"""Tap and position name of the pixel baseline."""


@dataclass(frozen=True)
class Tapped:
    """Layers and positions kept at one tap."""

    layers: tuple[int, ...]
    positions: tuple[str, ...]


class Features:
    """The features of a finished capture: arrays `features/TAP`, (images, layers, positions, width) float16 per shard.

    Rows are in the order of the `images` table. A shard with values beyond the float16 range also has
    `feature_scales/TAP`, float32 (images, layers, positions): the factor of each vector.

    Raises:
        DataError: the capture kept no features, or its shards disagree on layers or positions.
    """

    def __init__(self, capture: Stage) -> None:
        self.capture = capture
        self._shards = capture.finished_shards()
        taps: dict[str, Tapped] = {}
        for index, record in self._shards.items():
            for tap, kept in record["extra"].get("features", {}).items():
                tapped = Tapped(tuple(kept["layers"]), tuple(kept["positions"]))
                if taps.setdefault(tap, tapped) != tapped:
                    raise DataError(
                        f"capture {capture.digest}: shard {index} has other {tap} layers or positions than the "
                        f"other shards"
                    )
        if not taps:
            raise DataError(f"capture {capture.digest} has no token features to probe: set capture.keep_features=true")
        self.taps = taps

    @cached_property
    def images(self) -> pl.DataFrame:
        """The capture's `images` table, in the row order of the features."""
        return self.capture.scan("images").collect()

    def slice(self, tap: str, layer: int, positions: Sequence[str] | None = None) -> Float[np.ndarray, "n p d"]:
        """Features of one tap point, float16 (float32 if a shard is scaled); other layers are not read.

        Local shards are memory-mapped; on an object store, each image's layer is one byte-range request.
        """
        kept = self.taps[tap]
        chosen = slice(None) if positions is None else [kept.positions.index(p) for p in positions]
        parts = []
        for index, record in self._shards.items():
            described = record["extra"].get("features", {}).get(tap)
            if described is None:  # every image of the shard was rejected
                continue
            part = self._read(f"features/{tap}/{index:05d}.npy", kept.layers.index(layer))[:, chosen]
            if described.get("scaled"):
                scales = self._read(f"feature_scales/{tap}/{index:05d}.npy", kept.layers.index(layer))[:, chosen]
                part = part * scales[..., None]
            parts.append(part)
        return np.concatenate(parts)

    def width(self, tap: str) -> int:
        """Width of a tap's features, from the header of one file."""
        index = next(i for i, record in self._shards.items() if tap in record["extra"].get("features", {}))
        store, name = self.capture.store, f"features/{tap}/{index:05d}.npy"
        if store.is_local:
            return int(store.read_array(name).shape[-1])
        with store.fs.open(store.path(name), "rb") as handle:
            return int(_header(handle)[0][-1])

    def _read(self, name: str, layer: int) -> np.ndarray:
        store = self.capture.store
        if store.is_local:
            return store.read_array(name)[:, layer]
        with store.fs.open(store.path(name), "rb") as handle:
            shape, fortran, dtype = _header(handle)
            start = handle.tell()
        assert not fortran, name
        n, n_layers, *rest = shape
        size = math.prod(rest) * dtype.itemsize
        starts = [start + (i * n_layers + layer) * size for i in range(n)]
        chunks = store.fs.cat_ranges([store.path(name)] * n, starts, [s + size for s in starts])
        return np.stack([np.frombuffer(part, dtype).reshape(rest) for part in chunks])

    def select(
        self, taps: Sequence[str] | None, layers: Sequence[int] | None, positions: Sequence[str] | None
    ) -> list[tuple[str, int, list[str]]]:
        """(tap, layer, positions) of every selected block; None selects all that was captured.

        Layers are numbers of tap points. Taps without a selected layer are skipped, except taps of a single layer
        (projector), which are always included.

        Raises:
            ConfigError: a tap, layer or position was not captured.
        """
        _known("probe.taps", taps, self.taps)
        _known("probe.layers", layers, {layer for kept in self.taps.values() for layer in kept.layers})
        _known("probe.positions", positions, {p for kept in self.taps.values() for p in kept.positions})
        blocks = []
        for tap, kept in self.taps.items():
            if taps is not None and tap not in taps:
                continue
            names = [p for p in kept.positions if positions is None or p in positions]
            selected_layers = [n for n in kept.layers if layers is None or n in layers or len(kept.layers) == 1]
            blocks += [(tap, layer, names) for layer in selected_layers if names]
        if not blocks:
            raise ConfigError(f"probe: no block holds taps {taps}, layers {layers} and positions {positions} together")
        return blocks


def _header(handle: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype of a `.npy` file."""
    version = np.lib.format.read_magic(handle)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(handle)


def _known(key: str, requested: Sequence[object] | None, known: object) -> None:
    for name in requested or ():
        if name not in known:  # type: ignore[operator]
            hint = did_you_mean(str(name), map(str, known))  # type: ignore[call-overload]
            raise ConfigError(f"{key}: nothing was captured at {name!r}.{hint}")
