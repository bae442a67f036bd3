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

Precision: up to side `EXACT_SIDE` everything after X is float64 on a CPU. Above it is float32, which leaves noise of
about 5e-4 sigma_1 in place of small singular values; a row whose singular values below `TAIL_BELOW` sigma_1 make up
more than `TAIL_SHARE` of their sum is done again in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy.typing import NDArray
from scipy.linalg import blas, lapack
from torch import Tensor

EXACT_SIDE = 256
"""Largest side for which float64 is used throughout: there LAPACK is bound by latency, and float64 costs little."""
TAIL_BELOW = 2e-3
TAIL_SHARE = 1e-3


def eigenvalues(
    centred: Float32[Tensor, "R N D"], mean: Float32[Tensor, "R D"], counts: Int64[Tensor, " R"]
) -> tuple[Float64[Tensor, "R K"], Float64[Tensor, "R K"]]:
    """Squared singular values of raw and of centred tokens, sorted from large to small, K = min(N, D).

    Args:
        centred: tokens minus their mean, first `counts` of each row; zeros after them.
        mean: the mean token.
        counts: tokens of each row, <= N.
    """
    exact = min(centred.shape[1:]) <= EXACT_SIDE and not centred.is_cuda
    raw, cent = _eigenvalues(centred, mean, counts, torch.float64 if exact else torch.float32)
    if not exact:
        again = (_needs_float64(raw) | _needs_float64(cent)).nonzero()[:, 0]
        if len(again):
            raw[again], cent[again] = _eigenvalues(centred[again], mean[again], counts[again], torch.float64)
    return raw, cent


def _sterf(sterf: Callable[..., tuple[NDArray, int]], diagonal: NDArray, off: NDArray) -> NDArray:
    """Eigenvalues (ascending) of a symmetric tridiagonal matrix; the arguments are left as they are."""
    if len(diagonal) == 1:
        return diagonal.copy()
    eigs, info = sterf(diagonal, off)
    if info:
        raise ArithmeticError(f"sterf left {info} of {len(diagonal)} eigenvalues unconverged")
    return eigs


def _needs_float64(eigs: Float64[Tensor, "R K"]) -> Tensor:
    sigma = eigs.sqrt()
    tail = sigma.where(sigma < TAIL_BELOW * sigma[:, :1], 0.0).sum(1)
    return tail > TAIL_SHARE * sigma.sum(1)


def _eigenvalues(centred: Tensor, mean: Tensor, counts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    centred, mean = centred.to(dtype), mean.to(dtype)
    if centred.is_cuda:
        raw, cent = _dense(centred, mean, counts)
    else:
        x, mu = centred.numpy(), mean.numpy()
        pairs = [_tridiagonal(x[r], mu[r], int(counts[r])) for r in range(len(x))]
        raw, cent = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
    place = torch.arange(raw.shape[1], device=raw.device)
    raw, cent = (side.double().flip(1).clamp(min=0) for side in (raw, cent))
    # n tokens span at most n directions, n - 1 once centred: what lies beyond is rounding noise
    return raw.where(place < counts[:, None], 0.0), cent.where(place < counts[:, None] - 1, 0.0)


def _dense(x: Tensor, mean: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    n_rows, n_tokens, width = x.shape
    if n_tokens <= width:
        gram = x @ x.mT
        present = (torch.arange(n_tokens, device=x.device) < counts[:, None]).to(x)
        a = (x @ mean[..., None])[..., 0] + 0.5 * mean.square().sum(1, keepdim=True) * present
        cross = a[:, :, None] * present[:, None, :]
        raw = gram + cross + cross.mT
    else:
        gram = x.mT @ x
        raw = gram + counts[:, None, None] * mean[:, :, None] * mean[:, None, :]
    eigs = torch.linalg.eigvalsh(torch.cat([raw, gram]))
    return eigs[:n_rows], eigs[n_rows:]


def _tridiagonal(x: NDArray, mean: NDArray, count: int) -> tuple[NDArray, NDArray]:
    """Eigenvalues (ascending) of one row's raw and centred Gram matrix, in the dtype of `x`."""
    n_tokens, width = x.shape
    zero = x.dtype.type(0)
    mean_energy = count * float(mean @ mean)
    syrk, syr2, symv = blas.get_blas_funcs(("syrk", "syr2", "symv"), (x,))
    on_tokens = n_tokens <= width
    gram = syrk(1.0, x.T, trans=int(on_tokens), lower=1)
    side = len(gram)
    if side == 1:
        energy = gram[0] if not on_tokens else gram[0] * 0
        return energy + mean_energy, energy
    # reflection I - beta w w^T that maps v (unit) to -sign(v_0) e_0
    w = np.zeros(side, x.dtype)
    if on_tokens:
        w[:count] = 1 / np.sqrt(max(count, 1))
    elif mean_energy > 0:
        w[:] = mean / np.linalg.norm(mean)
    sign = -1.0 if w[0] < 0 else 1.0
    w[0] += sign
    beta = 1 / (sign * w[0]) if mean_energy > 0 or on_tokens else 2.0
    gram_w = symv(1.0, gram, w, lower=1)
    half = (0.5 * beta * beta * (w @ gram_w)) * w - beta * gram_w
    gram = syr2(1.0, w, half, a=gram, lower=1, overwrite_a=1)
    if on_tokens:
        border = x @ mean
        border -= beta * (w @ border) * w
        gram[:, 0] = np.sqrt(count) * border
        gram[0, 0] = mean_energy
    sytrd, sterf, lwork = lapack.get_lapack_funcs(("sytrd", "sterf", "sytrd_lwork"), (x,))
    _, diagonal, off, _, _ = sytrd(gram, lower=1, lwork=int(lwork(side)[0]), overwrite_a=1)
    if on_tokens:
        centred = np.concatenate([[zero], _sterf(sterf, diagonal[1:], off[1:])])
    else:
        centred = _sterf(sterf, diagonal, off)
        diagonal[0] += mean_energy
    return _sterf(sterf, diagonal, off), centred
