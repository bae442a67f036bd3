"""Spectra of raw and of centred tokens, and the leading directions, from one Gram matrix on the smaller side.

On a CPU one reduction to tridiagonal form serves both spectra and the directions (`tridiagonal.py`). On a GPU the
matrices of all rows go to one batched solver call.

Precision: float32 moves squared singular values by about `NOISE` times the largest, which only the effective rank can
feel: the others weigh by energy. Where a first-order bound of its error exceeds `LIMIT`, the row is done again in
float64. The bound adds up absolute errors: it is over ten times the error of real states, and twice that of
rank-deficient ones, where noise has one sign. Against a float64 SVD the effective rank is then within 1 %, the other
metrics within 0.1 % (tests hold both).
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from orchestrator.compression.tridiagonal import Tridiagonal

NOISE = 0.25 * 2.0**-23
"""Error of a squared singular value, as a share of the largest; measured from 0.02 to 0.15 of 2^-23 on average."""
LIMIT = 0.015
"""Bound of the effective rank's relative error above which a row is done again in float64."""
ABSENT = 1e-12
"""Share of the largest squared singular value below which a direction is rounding noise."""
FAINT = 1e-4
"""Share of it below which float32 does not tell a direction from its neighbours (GPU; the CPU sets the mean apart)."""


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
        raw, centred = self._solved
        # n tokens span at most n directions, n - 1 once centred: what lies beyond is rounding noise
        place = torch.arange(raw.shape[1], device=raw.device)
        return raw.where(place < self.counts[:, None], 0.0), centred.where(place < self.counts[:, None] - 1, 0.0)

    def top_directions(self, k: int) -> Float32[Tensor, "R D k"]:
        """Orthonormal right singular vectors of the raw tokens for the `k` largest singular values.

        Columns beyond the rank of the row (or beyond N or D) are zero.
        """
        raw = self.eigenvalues[0]
        kept = min(k, raw.shape[1])
        vectors = self._top_vectors(kept)
        if self.centred.shape[1] <= self.centred.shape[2]:  # left vectors U on the side of tokens: V = H^T U / sigma
            present = torch.arange(self.centred.shape[1], device=raw.device) < self.counts[:, None]
            vectors = vectors * present[..., None]
            vectors = self.centred.mT @ vectors + self.mean[:, :, None] * vectors.sum(1, keepdim=True)
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        vectors = vectors * (raw[:, :kept] > ABSENT * raw[:, :1])[:, None, :]
        return torch.nn.functional.pad(vectors, (0, k - kept))

    @cached_property
    def _solved(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of both kinds, (R, K) float64 from large to small, before what cannot be is set to zero."""
        every = torch.arange(len(self.counts), device=self.counts.device)
        raw, centred = self._solve(torch.float32, every)
        # the CPU's reduction keeps the mean apart, so that its noise is that of the centred tokens
        noise = NOISE * (raw if self.centred.is_cuda else centred)[:, :1]
        again = (torch.maximum(*(_rank_error(side, noise) for side in (raw, centred))) > LIMIT).nonzero()[:, 0]
        if len(again):
            redone = self._solve(torch.float64, again)
            raw, centred = (side.index_copy(0, again, new) for side, new in zip((raw, centred), redone, strict=True))
        return raw, centred

    def _solve(self, dtype: torch.dtype, rows: Tensor) -> tuple[Tensor, Tensor]:
        whole = len(rows) == len(self.counts)
        centred, mean, counts = (t if whole else t[rows] for t in (self.centred, self.mean, self.counts))
        centred, mean = centred.to(dtype), mean.to(dtype)
        if centred.is_cuda:
            eigs = torch.linalg.eigvalsh(_matrices(centred, mean, counts)).double().flip(2).clamp(min=0)
            return eigs[0], eigs[1]
        reduced = Tridiagonal(centred, mean, counts)
        self._reductions.append((rows, reduced))
        found = reduced.eigenvalues()
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    @cached_property
    def _reductions(self) -> list[tuple[Tensor, Tridiagonal]]:
        """CPU: which rows each reduction holds; later ones are more exact."""
        return []

    def _top_vectors(self, k: int) -> Float32[Tensor, "R n k"]:
        """Eigenvectors of the raw Gram matrices for the `k` largest eigenvalues, the largest first."""
        if self.centred.is_cuda:
            return _leading(self.centred, self.mean, self.counts, self._solved[0], k)
        values = self._solved[0][:, :k]
        found = torch.empty(len(values), min(self.centred.shape[1:]), k, dtype=torch.float64)
        for rows, reduced in self._reductions:
            found[rows] = reduced.top_vectors(values[rows].numpy())
        return found.float()


def _rank_error(eigs: Float64[Tensor, "R K"], noise: Float64[Tensor, "R 1"]) -> Float64[Tensor, " R"]:
    """Bound of the effective rank's relative error when each squared singular value is off by up to `noise`.

    With p = sigma / sum sigma the entropy H changes by sum (-ln p_i - H) d sigma_i / sum sigma, and sigma by
    noise / (2 sigma) or, from zero, by sqrt(noise).
    """
    sigma = eigs.sqrt()
    total = sigma.sum(1, keepdim=True)
    p = sigma / total
    entropy = torch.special.entr(p).sum(1, keepdim=True)
    moved = torch.minimum(noise / (2 * sigma), noise.sqrt()) / total
    return (moved * (p.clamp(min=1e-12).log() + entropy).abs()).sum(1).nan_to_num()


def _leading(x: Tensor, mean: Tensor, counts: Tensor, raw: Float64[Tensor, "R K"], k: int) -> Float32[Tensor, "R n k"]:
    """Eigenvectors of raw Gram matrices for the `k` largest eigenvalues of `raw`, in float64 where some are faint."""
    found = torch.linalg.eigh(_matrices(x, mean, counts)[0])[1][..., -k:].flip(2)
    top, values = raw[:, :1], raw[:, :k]
    weakest = values.where(values > ABSENT * top, top).amin(1)
    again = (weakest < FAINT * top[:, 0]).nonzero()[:, 0]
    if len(again):
        exact = _matrices(x[again].double(), mean[again].double(), counts[again])[0]
        found[again] = torch.linalg.eigh(exact)[1][..., -k:].flip(2).float()
    return found


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
