"""Flexible curves of covariates, fitted to ranked columns by leave-one-out error, and their residuals within blocks.

Splines of several resolutions with a ridge penalty; for each column the combination with the least leave-one-out error.
Jumps that are beyond doubt are taken off before, for no block may hold one.

Shapes: n images, C columns, q covariates, S smoothers, B blocks, J jumps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

from orchestrator.stats.blocks import BLOCK, neighbours

DETERMINED = 0.99
"""Share of a column's variance explained by the covariates beyond which nothing is left to relate."""
_KNOTS = ((0, 0), (1, 3), (3, 4), (3, 8), (1, 12), (0, 16), (0, 32))
"""(degree, knots) of the curves; degree 0 are steps, and no knots is no curve at all."""
_PENALTIES = (1e-4, 1e-2, 1.0, 10.0)
"""Ridge penalties; rows of a basis have norm about 1."""
_PROBES = 64
"""Random vectors that estimate the degrees of freedom."""
_JUMP = 12.0
"""Squared t from which a jump is beyond doubt; the largest of 40 exceeds it by chance in some 2 % of columns."""
_MOST_JUMPS = 3
_SMOOTH = 5
"""Place among the smoothers of the curve (cubic, four knots) that a jump is seen against."""


@dataclass(frozen=True)
class Fitted:
    """Leave-one-out residuals of ranked columns, within blocks."""

    residuals: Float[np.ndarray, "n C"]
    smoother: Int[np.ndarray, " C"]
    explained: Float[np.ndarray, " C"]

    @property
    def determined(self) -> Bool[np.ndarray, " C"]:
        """Columns of which the covariates leave nothing, constant ones included."""
        return ~(self.explained < DETERMINED)


@dataclass(frozen=True)
class Curves:
    """Smoothers of one set of covariates, and its blocks of neighbours. One instance serves any number of columns."""

    blocks: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, " B"]
    jumps: Float[np.ndarray, "n J"]
    """Steps at every place between values of a covariate (at most 40 each) that leaves three images on both sides."""
    smoothers: list[tuple[np.ndarray, np.ndarray]]
    """(basis (n, p), (basis' basis + penalty)^-1 basis' (p, n)) each."""
    leverage: Float[np.ndarray, "S n"]
    dispersion: Float[np.ndarray, "S S"]
    """Variance of the sum of products of residuals over what independent residuals would have, by pair of smoothers."""

    @classmethod
    def of(cls, covariates: Float[np.ndarray, "n q"], strata: Int[np.ndarray, " n"] | None = None) -> Curves:
        """Bases, leverages and degrees of freedom of finite covariates; those of the last few are kept."""
        values = np.ascontiguousarray(covariates, dtype=np.float64)
        codes = np.zeros(len(values), dtype=np.int64) if strata is None else np.asarray(strata, dtype=np.int64)
        return _curves(values.tobytes(), values.shape, codes.tobytes())

    @classmethod
    def _made(cls, covariates: Float[np.ndarray, "n q"], strata: Int[np.ndarray, " n"]) -> Curves:
        scaled = _ranks(covariates)
        blocks = neighbours(scaled, BLOCK, strata)
        smoothers = [
            (basis, np.linalg.solve(basis.T @ basis + penalty * _penalty(basis), basis.T))
            for basis in _bases(scaled)
            for penalty in (_PENALTIES if basis.shape[1] > 1 else _PENALTIES[:1])
        ]
        leverage = np.stack([np.einsum("np,pn->n", basis, inverse) for basis, inverse in smoothers])
        usable = leverage.max(axis=1) < 0.95  # a curve that follows single images has no leave-one-out error
        smoothers = [smoother for smoother, use in zip(smoothers, usable, strict=True) if use]
        leverage = leverage[usable]
        sizes = np.bincount(blocks)
        jumps = _jumps(scaled)
        curves = cls(blocks, sizes, jumps, smoothers, leverage, np.empty((0, 0)))
        return replace(curves, dispersion=curves._dispersion())

    def fit(self, columns: Float[np.ndarray, "n C"]) -> Fitted:
        """Rank the columns and take off, for each, the curve of the least leave-one-out error."""
        ranked = _ranks(columns)
        total = (ranked**2).sum(0)
        ranked = self._without_jumps(ranked)
        best = np.full(ranked.shape[1], np.inf)
        residuals, smoother = ranked.copy(), np.zeros(ranked.shape[1], dtype=np.intp)
        for k in range(len(self.smoothers)):
            left = self._residuals(k, ranked)
            error = (left**2).sum(0)
            better = error < best
            best = np.where(better, error, best)
            residuals[:, better] = left[:, better]
            smoother[better] = k
        with np.errstate(invalid="ignore", divide="ignore"):
            explained = np.where(total > 1e-9, np.clip(1 - best / total, 0, 1), np.nan)
        return Fitted(self.centred(residuals), smoother, explained)

    def _without_jumps(self, columns: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n C"]:
        """Take the surest jump off each column, against a smooth curve, as long as it is beyond doubt."""
        if not self.jumps.shape[1]:
            return columns
        basis = self.smoothers[min(_SMOOTH, len(self.smoothers) - 1)][0]
        orthogonal = scipy.linalg.orth(basis)  # splines sum to the constant: fewer directions than columns
        steps = self.jumps - orthogonal @ (orthogonal.T @ self.jumps)
        norms = (steps**2).sum(0)
        steps, places = steps[:, norms > 0.5], np.flatnonzero(norms > 0.5)
        norms = norms[places]
        dof = len(columns) - orthogonal.shape[1] - 1
        columns = columns.copy()
        for _ in range(_MOST_JUMPS if len(places) and dof > 3 else 0):
            left = columns - orthogonal @ (orthogonal.T @ columns)
            slopes = (steps.T @ left) / norms[:, None]
            gain = slopes**2 * norms[:, None]
            best = gain.argmax(0)
            taken = gain[best, np.arange(columns.shape[1])]
            with np.errstate(invalid="ignore", divide="ignore"):
                sure = taken * dof > _JUMP * np.maximum((left**2).sum(0) - taken, 1e-12)
            if not sure.any():
                break
            columns[:, sure] -= self.jumps[:, places[best[sure]]] * slopes[best[sure], np.flatnonzero(sure)]
        return columns

    def _residuals(self, k: int, columns: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n C"]:
        basis, inverse = self.smoothers[k]
        return (columns - basis @ (inverse @ columns)) / (1 - self.leverage[k])[:, None]

    def _transposed(self, k: int, columns: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n C"]:
        basis, inverse = self.smoothers[k]
        scaled = columns / (1 - self.leverage[k])[:, None]
        return scaled - inverse.T @ (basis.T @ scaled)

    def centred(self, columns: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n C"]:
        """Columns less their mean in each block."""
        return columns - (self.sums(columns) / self.sizes[:, None])[self.blocks]

    def sums(self, columns: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "B C"]:
        """Sums over each block."""
        out = np.zeros((len(self.sizes), columns.shape[1]))
        np.add.at(out, self.blocks, columns)
        return out

    def _dispersion(self) -> Float[np.ndarray, "S S"]:
        """||Ax' M Ay||^2 over its value for independent residuals: Ax, Ay map noise to residuals, M centres blocks."""
        n, n_smoothers = len(self.blocks), len(self.smoothers)
        noise = np.random.default_rng(0).standard_normal((n, _PROBES))
        mapped = [self.centred(self._residuals(k, noise)) for k in range(n_smoothers)]
        spread = np.stack([self.sums(m**2).mean(1) for m in mapped])  # trace of A A' within each block
        expected = (spread / np.maximum(self.sizes - 1, 1)) @ spread.T
        actual = np.empty((n_smoothers, n_smoothers))
        for j, right in enumerate(mapped):
            for k in range(n_smoothers):
                actual[k, j] = (self._transposed(k, right) ** 2).sum() / _PROBES
        return np.maximum(actual / expected, 1.0)


@lru_cache(maxsize=8)
def _curves(values: bytes, shape: tuple[int, ...], strata: bytes) -> Curves:
    return Curves._made(np.frombuffer(values).reshape(shape), np.frombuffer(strata, dtype=np.int64))


def _ranks(columns: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n C"]:
    """Average ranks, centred and scaled to (-1/2, 1/2)."""
    if not columns.shape[1]:
        return columns
    return (scipy.stats.rankdata(columns, axis=0) - (len(columns) + 1) / 2) / len(columns)


def _bases(scaled: Float[np.ndarray, "n q"]) -> list[np.ndarray]:
    """Bases (n, 1 + p): a constant, splines of each covariate, and products of coarse splines of each pair."""
    n, varying = len(scaled), [k for k in range(scaled.shape[1]) if np.ptp(scaled[:, k]) > 0]
    ones = np.ones((n, 1))
    bases = [ones]
    for degree, knots in _KNOTS[1:] if varying else ():
        if (knots + degree) * len(varying) > n // 3:
            continue
        parts = [_splines(scaled[:, k], degree, knots) for k in varying]
        bases.append(np.concatenate([ones, *parts], axis=1))
        if len(varying) > 1 and degree == 3:
            coarse = [_splines(scaled[:, k], 1, 3) for k in varying]
            pairs = [
                (coarse[i][:, :, None] * coarse[j][:, None, :]).reshape(n, -1)
                for i in range(len(coarse))
                for j in range(i)
            ]
            if sum(p.shape[1] for p in (*parts, *pairs)) <= n // 3:
                bases.append(np.concatenate([ones, *parts, *pairs], axis=1))
    return bases


def _splines(values: Float[np.ndarray, " n"], degree: int, knots: int) -> np.ndarray:
    if degree == 0:
        edges = np.unique(np.quantile(values, np.linspace(0, 1, knots + 1)[1:-1]))
        return np.eye(len(edges) + 1)[np.searchsorted(edges, values, side="left")]
    from sklearn.preprocessing import SplineTransformer  # half a second, for one function

    return SplineTransformer(n_knots=knots, degree=degree, knots="uniform").fit_transform(values[:, None])


def _jumps(scaled: Float[np.ndarray, "n q"]) -> Float[np.ndarray, "n J"]:
    steps = []
    for values in scaled.T:
        cuts = np.unique(values)[1:]
        cuts = cuts[np.linspace(0, len(cuts) - 1, min(len(cuts), 40)).round().astype(int)] if len(cuts) else cuts
        steps += [values >= cut for cut in cuts if 3 <= (values >= cut).sum() <= len(values) - 3]
    return np.stack(steps, axis=1).astype(np.float64) if steps else np.empty((len(scaled), 0))


def _penalty(basis: np.ndarray) -> np.ndarray:
    """Ridge on all but the constant."""
    diagonal = np.ones(basis.shape[1])
    diagonal[0] = 1e-6
    return np.diag(diagonal)
