"""Eigenvalues of the raw and the centred Gram matrix of tokens, from one matrix product and one reduction.

Let X (N, D) hold the centred tokens of one row, mu their mean, v = 1/sqrt N. The Gram matrix is formed on the smaller
side, from X, so that a large mean costs no precision:

* N <= D: raw = X X^T + sqrt N (a v^T + v a^T) + N |mu|^2 v v^T with a = X mu. A Householder reflection that maps v to
  the first axis makes row 0 of X X^T vanish. Householder tridiagonalisation starts at axis 0 and leaves the block below
  it to itself, so the raw matrix becomes a tridiagonal T, and T without row 0 is the centred one's.
* N > D: raw = X^T X + N mu mu^T. A reflection maps mu to the first axis; T of X^T X is the centred one's, and adding
  N |mu|^2 to T[0, 0] gives the raw one's.

On a CPU this uses BLAS and LAPACK through scipy, row by row, and costs about one eigenvalue problem instead of two.
On a GPU both matrices of all rows go to one batched `torch.linalg.eigvalsh`.

Precision: everything after X is float32, which leaves noise of about 5e-4 sigma_1 in place of small singular values. A
row whose singular values below `TAIL_BELOW` sigma_1 make up more than `TAIL_SHARE` of their sum is done again in
float64. Against a float64 SVD the effective rank is then within 1 %, the other metrics within 0.1 % (tests hold both).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy.typing import NDArray
from scipy.linalg import blas, eigh_tridiagonal, lapack
from torch import Tensor

TAIL_BELOW = 2e-3
TAIL_SHARE = 1e-3


class Spectrum:
    """Spectra of the rows of a batch of token matrices.

    Args:
        centred: (R, N, D) tokens minus their mean, the first `counts` of each row; zeros after them.
        mean: (R, D) the mean token.
        counts: (R,) tokens of each row, <= N.
    """

    def __init__(
        self, centred: Float32[Tensor, "R N D"], mean: Float32[Tensor, "R D"], counts: Int64[Tensor, " R"]
    ) -> None:
        self.centred, self.mean, self.counts = centred, mean, counts

    @cached_property
    def eigenvalues(self) -> tuple[Float64[Tensor, "R K"], Float64[Tensor, "R K"]]:
        """Squared singular values of raw and of centred tokens, from large to small, K = min(N, D)."""
        solved = (self._dense if self.centred.is_cuda else self._reduced)[0]
        raw, centred = (side.double().flip(1).clamp(min=0) for side in solved)
        # n tokens span at most n directions, n - 1 once centred: what lies beyond is rounding noise
        place = torch.arange(raw.shape[1], device=raw.device)
        return raw.where(place < self.counts[:, None], 0.0), centred.where(place < self.counts[:, None] - 1, 0.0)

    def top_directions(self, k: int) -> Float32[Tensor, "R D k"]:
        """Orthonormal right singular vectors of the raw tokens for the `k` largest singular values.

        Columns beyond the rank of the row (or beyond N or D) are zero.
        """
        raw = self.eigenvalues[0]
        kept = min(k, raw.shape[1])
        if self.centred.is_cuda:
            vectors = torch.linalg.eigh(_matrices(self.centred, self.mean, self.counts)[0])[1][..., -kept:]
        else:
            vectors = torch.from_numpy(np.stack([r.top_vectors(kept) for r in self._reduced[1]])).float()
        vectors = vectors.flip(2)
        if self.centred.shape[1] <= self.centred.shape[2]:  # left vectors U on the side of tokens: V = H^T U / sigma
            present = torch.arange(self.centred.shape[1], device=raw.device) < self.counts[:, None]
            vectors = vectors * present[..., None]
            vectors = self.centred.mT @ vectors + self.mean[:, :, None] * vectors.sum(1, keepdim=True)
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        vectors = vectors * (raw[:, :kept] > 1e-12 * raw[:, :1])[:, None, :]
        return torch.nn.functional.pad(vectors, (0, k - kept))

    @cached_property
    def _reduced(self) -> tuple[tuple[Tensor, Tensor], list[Reduction]]:
        """CPU: ascending eigenvalues of both kinds, and each row's reduction to tridiagonal form."""
        x, mean, counts = self.centred.numpy(), self.mean.numpy(), self.counts.tolist()
        reductions, raw, centred = [], [], []
        for r, count in enumerate(counts):
            for dtype in (np.float32, np.float64):
                reduction = Reduction(x[r].astype(dtype, copy=False), mean[r].astype(dtype, copy=False), count)
                spectra = reduction.eigenvalues()
                if not any(_tail_matters(torch.from_numpy(np.stack(spectra)))):
                    break
            reductions.append(reduction)
            raw.append(torch.from_numpy(spectra[0]).double())
            centred.append(torch.from_numpy(spectra[1]).double())
        return (torch.stack(raw), torch.stack(centred)), reductions

    @cached_property
    def _dense(self) -> tuple[tuple[Tensor, Tensor]]:
        """GPU: ascending eigenvalues of both kinds by one batched solver call."""
        matrices = _matrices(self.centred, self.mean, self.counts)
        eigs = torch.linalg.eigvalsh(matrices)
        again = _tail_matters(eigs.flatten(0, 1)).view(2, -1).any(0).nonzero()[:, 0]
        if len(again):
            exact = _matrices(self.centred[again].double(), self.mean[again].double(), self.counts[again])
            eigs = eigs.double().index_copy(1, again, torch.linalg.eigvalsh(exact))
        return ((eigs[0], eigs[1]),)


def _tail_matters(ascending: Tensor) -> Tensor:
    """Whether singular values at the noise level of float32 make up a share of each row (R, K) that matters."""
    sigma = ascending.clamp(min=0).sqrt()
    tail = sigma.where(sigma < TAIL_BELOW * sigma[:, -1:], 0.0).sum(1)
    return tail > TAIL_SHARE * sigma.sum(1)


def _matrices(x: Tensor, mean: Tensor, counts: Tensor) -> Tensor:
    """The raw and the centred Gram matrices on the smaller side, (2, R, K, K)."""
    if x.shape[1] <= x.shape[2]:
        gram = x @ x.mT
        present = (torch.arange(x.shape[1], device=x.device) < counts[:, None]).to(x.dtype)
        border = (x @ mean[..., None])[..., 0] + 0.5 * mean.square().sum(1, keepdim=True) * present
        cross = border[:, :, None] * present[:, None, :]
        return torch.stack([gram + cross + cross.mT, gram])
    gram = x.mT @ x
    return torch.stack([gram + counts[:, None, None] * mean[:, :, None] * mean[:, None, :], gram])


@cache
def _routines(char: str) -> tuple[Callable[..., Any], ...]:
    """BLAS and LAPACK routines for dtype `char` (f or d); looking them up costs more than a small problem."""
    found = blas.get_blas_funcs(("syrk", "syr2", "symv"), dtype=np.dtype(char))
    return (*found, *lapack.get_lapack_funcs(("sytrd", "sytrd_lwork"), dtype=np.dtype(char)))


@cache
def _sterf(char: str) -> Callable[..., tuple[NDArray, int]]:
    return lapack.get_lapack_funcs(("sterf",), dtype=np.dtype(char))[0]


class Reduction:
    """One row's Gram matrix reduced to tridiagonal form; see the module docstring. Works in the dtype of `x`."""

    def __init__(self, x: NDArray, mean: NDArray, count: int) -> None:
        syrk, syr2, symv, sytrd, lwork = _routines(x.dtype.char)
        self.on_tokens = x.shape[0] <= x.shape[1]
        self.mean_energy = count * float(mean @ mean)
        gram = syrk(1.0, x.T, trans=int(self.on_tokens), lower=1)
        self.side = len(gram)
        self._reflect_axis(mean, count)
        w = self.axis
        gram_w = symv(1.0, gram, w, lower=1)
        half = (0.5 * self.beta**2 * (w @ gram_w)) * w - self.beta * gram_w
        gram = syr2(1.0, w, half, a=gram, lower=1, overwrite_a=1)
        if self.on_tokens:
            border = x @ mean
            gram[:, 0] = -np.sqrt(count) * (border - self.beta * (w @ border) * w)
            gram[0, 0] = self.mean_energy
        if self.side == 1:
            self.diagonal, self.off = gram[0].copy(), gram[0, :0]
            return
        self.reflectors, self.diagonal, self.off, self.tau, _ = sytrd(
            gram, lower=1, lwork=int(lwork(self.side, lower=1)[0]), overwrite_a=1
        )

    def _reflect_axis(self, mean: NDArray, count: int) -> None:
        """Set the reflection I - beta w w^T that maps v (N <= D) or mu/|mu| (N > D) to the first axis, up to sign."""
        w = np.zeros(self.side, mean.dtype)
        if self.on_tokens:
            w[:count] = 1 / np.sqrt(max(count, 1))
        elif self.mean_energy > 0:
            w[:] = mean / np.linalg.norm(mean)
        w[0] += 1.0 if w[0] >= 0 else -1.0
        self.axis, self.beta = w, 2 / float(w @ w)

    @property
    def raw_diagonal(self) -> NDArray:
        """Diagonal of the raw tokens' tridiagonal matrix."""
        if self.on_tokens:
            return self.diagonal
        diagonal = self.diagonal.copy()
        diagonal[0] += self.mean_energy
        return diagonal

    def eigenvalues(self) -> tuple[NDArray, NDArray]:
        """Ascending eigenvalues of the raw and of the centred matrix."""
        raw = _tridiagonal_eigenvalues(self.raw_diagonal, self.off)
        if not self.on_tokens:
            return raw, _tridiagonal_eigenvalues(self.diagonal, self.off)
        below = _tridiagonal_eigenvalues(self.diagonal[1:], self.off[1:])
        return raw, np.concatenate([np.zeros(1, raw.dtype), below])

    def top_vectors(self, k: int) -> NDArray:
        """Eigenvectors (side, k) of the raw matrix for its `k` largest eigenvalues, the largest last."""
        n = self.side
        if n == 1:
            return np.ones((1, 1), self.diagonal.dtype)
        _, z = eigh_tridiagonal(self.raw_diagonal, self.off, select="i", select_range=(n - k, n - 1))
        (ormqr,) = lapack.get_lapack_funcs(("ormqr",), (z,))
        reflectors = np.asfortranarray(self.reflectors[1:, :-1])
        z[1:] = ormqr("L", "N", reflectors, self.tau, np.asfortranarray(z[1:]), 32 * k)[0]
        return z - self.beta * np.outer(self.axis, self.axis @ z)


def _tridiagonal_eigenvalues(diagonal: NDArray, off: NDArray) -> NDArray:
    if len(diagonal) <= 1:
        return diagonal.copy()
    eigs, unconverged = _sterf(diagonal.dtype.char)(diagonal, off)
    if unconverged:
        raise ArithmeticError(f"sterf left {unconverged} of {len(diagonal)} eigenvalues unconverged")
    return eigs
