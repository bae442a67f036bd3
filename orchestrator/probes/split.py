"""Train/test split: by image, never by token; copies of an image are never on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.errors import DataError


@dataclass(frozen=True)
class Split:
    """Split of a probe's images. A scene has one seed and index and is one image: splitting by image splits by scene.

    Args:
        train: sorted indices of training images.
        test: sorted indices of held-out images.
        fold: (len(train),) inner fold of each training image, 0..n_folds-1.
        n_duplicates: number of further copies of an image, which are not used.
    """

    train: np.ndarray
    test: np.ndarray
    fold: np.ndarray
    n_duplicates: int = 0

    @property
    def n_folds(self) -> int:
        return int(self.fold.max()) + 1

    def among(self, rows: np.ndarray) -> Split | None:
        """The same split of the images `rows` (sorted) alone, renumbered; None where a side has fewer than two."""
        kept = np.isin(self.train, rows)
        train, test = (np.searchsorted(rows, side[np.isin(side, rows)]) for side in (self.train, self.test))
        if len(train) < 2 or len(test) < 2:
            return None
        folds = np.unique(self.fold[kept], return_inverse=True)[1]
        return Split(train, test, folds, self.n_duplicates)


def content_keys(rows: np.ndarray) -> list[str]:
    """A key per row of (n, ...) `rows` that two rows share only when they hold the same values (SHA-256 of bytes).

    For pixels: hidden states of two copies differ by rounding, and states before the image do not depend on it.
    """
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1)
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in flat]


def check_enough(n: int, test_fraction: float, n_folds: int) -> int:
    """How many of n different images are held out.

    Raises:
        DataError: too few to hold some out and fill every fold twice.
    """
    n_test = round(test_fraction * n)
    n_train = n - n_test
    if n_test < 2 or n_train < 2 * n_folds:
        raise DataError(
            f"probes: {n} different images give {n_train} for training and {n_test} held out; "
            f"expected at least {2 * n_folds} and 2 (n_folds {n_folds}, test_fraction {test_fraction})"
        )
    return n_test


def make_split(groups: Sequence[Hashable], test_fraction: float, n_folds: int, seed: int) -> Split:
    """Split n images by content key: of several copies only the first is used.

    Raises:
        DataError: too few different images for a held-out set and two images per fold.
    """
    first: dict[Hashable, int] = {}
    for index, key in enumerate(groups):
        first.setdefault(key, index)
    unique = np.fromiter(first.values(), dtype=np.int64)
    n_test = check_enough(len(unique), test_fraction, n_folds)
    random = np.random.default_rng([seed, 0x5B117])
    order = random.permutation(len(unique))
    train = np.sort(unique[order[n_test:]])
    fold = random.permutation(np.arange(len(train)) % n_folds)
    return Split(train, np.sort(unique[order[:n_test]]), fold, n_duplicates=len(groups) - len(unique))


def check_leak(split: Split, groups: Sequence[Hashable]) -> None:
    """Check that no image, nor a copy of it, is on both sides.

    Raises:
        DataError: an image is on both sides; names the first few pairs.
    """
    trained = {groups[index]: int(index) for index in split.train}
    pairs = [(trained[groups[index]], int(index)) for index in split.test if groups[index] in trained]
    if pairs:
        shown = ", ".join(f"{a} = {b}" for a, b in pairs[:5])
        raise DataError(f"probes: {len(pairs)} held-out images are copies of training images (rows {shown}): a leak")
