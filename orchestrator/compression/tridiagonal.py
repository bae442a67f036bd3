"""Raw and centred Gram matrices of token matrices as tridiagonal ones, from one product and one reduction (CPU).

Let X (N, D) hold the centred tokens of one row, mu their mean, v = 1/sqrt N. The Gram matrix is formed on the smaller
side, from X, so that a large mean costs no precision:

* N <= D: raw = X X^T + sqrt N (a v^T + v a^T) + N |mu|^2 v v^T with a = X mu. A Householder reflection that maps v to
  the first axis makes row 0 of X X^T vanish. Householder tridiagonalisation starts at axis 0 and leaves the block below
  it to itself, so the raw matrix becomes a tridiagonal T, and T without row 0 is the centred one's.
* N > D: raw = X^T X + N mu mu^T. A reflection maps mu to the first axis; T of X^T X is the centred one's, and adding
  N |mu|^2 to T[0, 0] gives the raw one's.

Small sides are reduced by `kernels.reduce_rows`, many rows at a time; large ones by LAPACK, row by row.

`R` rows, `n` = min(N, D), `k` vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from scipy.linalg import blas, lapack
from torch import Tensor

from orchestrator.compression import kernels

SMALL_SIDE = 256
"""Largest side that the compiled kernel reduces faster than LAPACK does."""


_SMALLEST, _LARGEST = 1e-6, 1e6
"""Norms of a row between which it needs no scaling."""


class Tridiagonal:
    """The reduction of R rows, in the dtype of `centred`.

    Args:
        centred: (R, N, D) tokens minus their mean; zeros beyond `counts`.
        mean: (R, D).
        counts: (R,).
    """

    def __init__(self, centred: Float[Tensor, "R N D"], mean: Float[Tensor, "R D"], counts: Tensor) -> None:
        self.on_tokens = centred.shape[1] <= centred.shape[2]
        self.small = min(centred.shape[1:]) <= SMALL_SIDE
        self.mean_energy = (counts * mean.square().sum(1)).double().numpy()
        # squares of the Gram matrix's entries must stay in the range of float32: scale what is very large or small
        size = torch.linalg.vector_norm(centred.flatten(1), dim=1) + torch.linalg.vector_norm(mean, dim=1)
        scale = torch.where((size > _SMALLEST) & (size < _LARGEST) | (size == 0), 1.0, 1 / size)
        if (scale != 1).any():
            centred, mean = centred * scale[:, None, None], mean * scale[:, None]
            self.mean_energy *= scale.double().square().numpy()
        self.scale = scale.double().numpy()
        self._reflect_axis(mean, counts, min(centred.shape[1:]))
        if self.small:
            self._reduce_small(centred, mean, counts)
        else:
            self._reduce_large(centred.numpy(), mean.numpy(), counts.numpy())

    def _reflect_axis(self, mean: Tensor, counts: Tensor, side: int) -> None:
        """Set the reflections I - beta w w^T that map v (N <= D) or mu/|mu| (N > D) to the first axis, up to sign."""
        if self.on_tokens:
            w = (torch.arange(side) < counts[:, None]) / counts[:, None].clamp(min=1).sqrt()
            w = w.to(mean.dtype)
        else:
            w = torch.nn.functional.normalize(mean, dim=1, eps=torch.finfo(mean.dtype).tiny)
        w[:, 0] += torch.where(w[:, 0] >= 0, 1.0, -1.0)
        self.axis, self.beta = w, 2 / w.square().sum(1)

    def _border(self, centred: Tensor, mean: Tensor, counts: Tensor) -> Tensor:
        """Column 0 of the reflected raw matrix on the side of tokens, (R, N)."""
        a = (centred @ mean[..., None])[..., 0]
        a = a - (self.beta * (self.axis * a).sum(1))[:, None] * self.axis
        border = -counts.to(a.dtype).sqrt()[:, None] * a
        border[:, 0] = torch.from_numpy(self.mean_energy).to(a.dtype)
        return border

    def _reduce_small(self, x: Tensor, mean: Tensor, counts: Tensor) -> None:
        gram = x @ x.mT if self.on_tokens else x.mT @ x
        w, beta = self.axis[..., None], self.beta[:, None, None]
        product = (w.mT @ gram).mT  # gram is symmetric, and a row times a matrix is the faster of the two
        half = (0.5 * beta**2 * (w.mT @ product)) * w - beta * product
        gram.baddbmm_(torch.cat([w, half], 2), torch.cat([half, w], 2).mT)
        if self.on_tokens:
            gram[:, :, 0] = self._border(x, mean, counts)
        self.reflections = gram.numpy()
        self.diagonal, self.off = np.empty((2, *gram.shape[:2]))
        self.tau = np.empty(gram.shape[:2], self.reflections.dtype)
        _in_threads(kernels.reduce_rows, self.reflections, self.diagonal, self.off, self.tau)

    def _reduce_large(self, x: NDArray, mean: NDArray, counts: NDArray) -> None:
        syrk, syr2, symv, sytrd, lwork = _routines(x.dtype.char)
        border = self._border(*map(torch.from_numpy, (x, mean, counts))).numpy() if self.on_tokens else None
        side = min(x.shape[1:])
        self.diagonal, self.off = np.zeros((2, len(x), side))
        work = int(lwork(side, lower=1)[0])
        self.factors: list[tuple[NDArray, NDArray]] = []
        for r in range(len(x)):
            w, beta = self.axis[r].numpy(), float(self.beta[r])
            gram = syrk(1.0, x[r].T, trans=int(self.on_tokens), lower=1)
            product = symv(1.0, gram, w, lower=1)
            half = (0.5 * beta**2 * (w @ product)) * w - beta * product
            gram = syr2(1.0, w, half, a=gram, lower=1, overwrite_a=1)
            if border is not None:
                gram[:, 0] = border[r]
            reflections, self.diagonal[r], self.off[r, :-1], tau, _ = sytrd(gram, lower=1, lwork=work, overwrite_a=1)
            self.factors.append((reflections, tau))

    @property
    def raw_diagonal(self) -> Float64[np.ndarray, "R n"]:
        """Diagonals of the raw tokens' matrices."""
        diagonal = self.diagonal.copy()
        if not self.on_tokens:
            diagonal[:, 0] += self.mean_energy
        return diagonal

    def eigenvalues(self) -> tuple[Float64[np.ndarray, "R n"], Float64[np.ndarray, "R n"]]:
        """Eigenvalues of the raw and of the centred matrices, from large to small, not below 0."""
        centred, off = self.diagonal.copy(), self.off.copy()
        if self.on_tokens:
            centred[:, 0], off[:, 0] = 0.0, 0.0
        # reversed: the mean's large entry comes last, as the QL method wants graded matrices
        diagonals = np.concatenate([self.raw_diagonal, centred])[:, ::-1]
        couplings = np.zeros_like(diagonals)
        couplings[:, :-1] = np.concatenate([self.off, off])[:, -2::-1]
        found = np.empty(diagonals.shape)
        _in_threads(kernels.eigenvalues, np.ascontiguousarray(diagonals), couplings, found)
        found = np.sort(found.clip(min=0), axis=1)[:, ::-1] / np.tile(self.scale**2, 2)[:, None]
        return found[: len(self.diagonal)], found[len(self.diagonal) :]

    def top_vectors(self, values: Float64[np.ndarray, "R k"]) -> Float64[Tensor, "R n k"]:
        """Eigenvectors of the raw matrices for the given leading eigenvalues (from large to small)."""
        found = np.empty((len(values), values.shape[1], self.diagonal.shape[1]))
        scaled = values * self.scale[:, None] ** 2
        _in_threads(kernels.eigenvectors, self.raw_diagonal, self.off, scaled, found)
        if self.small:
            _in_threads(kernels.undo_reductions, self.reflections, self.tau, found)
        elif found.shape[2] > 1:
            for r, (reflections, tau) in enumerate(self.factors):
                (ormqr,) = lapack.get_lapack_funcs(("ormqr",), (reflections,))
                z = np.asfortranarray(found[r, :, 1:].T, dtype=reflections.dtype)
                inner = np.asfortranarray(reflections[1:, :-1])
                found[r, :, 1:] = ormqr("L", "N", inner, tau, z, 32 * values.shape[1])[0].T
        vectors, w = torch.from_numpy(found).mT, self.axis.double()[..., None]
        return vectors - self.beta.double()[:, None, None] * w * (w.mT @ vectors)


@cache
def _routines(char: str) -> tuple[Callable[..., Any], ...]:
    """BLAS and LAPACK routines for dtype `char` (f or d); looking them up costs more than a small problem."""
    found = blas.get_blas_funcs(("syrk", "syr2", "symv"), dtype=np.dtype(char))
    return (*found, *lapack.get_lapack_funcs(("sytrd", "sytrd_lwork"), dtype=np.dtype(char)))


_LEAST_WORK = 2**18
"""Matrix entries (R n^2) below which handing rows to threads costs more than it saves."""


def _in_threads(kernel: Callable[..., Any], *arrays: NDArray) -> None:
    """Run a kernel over blocks of rows, one a thread of torch; raises ArithmeticError without convergence."""
    n_rows = len(arrays[0])
    n_blocks = min(torch.get_num_threads(), n_rows) if n_rows * arrays[0].shape[-1] ** 2 >= _LEAST_WORK else 1
    edges = np.linspace(0, n_rows, n_blocks + 1).astype(int)
    blocks = [tuple(a[start:stop] for a in arrays) for start, stop in pairwise(edges)]
    results = [kernel(*blocks[0])] if n_blocks == 1 else list(_pool().map(lambda block: kernel(*block), blocks))
    if any(results):
        raise ArithmeticError(f"eigenvalues did not converge in {kernels.MAX_SWEEPS} sweeps")


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads())
