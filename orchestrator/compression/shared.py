"""Tokens of some rows and what metrics share of them. `R` rows, `N` tokens, `D` width, `K` = min(N, D)."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from orchestrator.compression import norms as on_norms
from orchestrator.compression.spectrum import Spectrum
from orchestrator.errors import ConfigError

_ROUNDING = 2e-6
"""Centred tokens of less than this share of the raw norm are rounding noise of the subtraction, taken as zero."""


class Shared:
    """Tokens of some rows and what metrics share of them, each computed once when first asked for.

    Attributes:
        hidden: (R, N, D) float32, the tokens of each row first, zeros after them.
        mask: (R, N) bool, where tokens are.
        counts: (R,) int64, tokens of each row.
    """

    def __init__(self, hidden: Float32[Tensor, "R N D"], counts: Int64[Tensor, " R"]) -> None:
        self.hidden = hidden
        self.counts = counts
        self.mask = torch.arange(hidden.shape[1], device=hidden.device) < counts[:, None]
        self.full = bool(self.mask.all())

    @cached_property
    def norms(self) -> Float32[Tensor, "R N"]:
        """Token norms a_n, zero at padding."""
        return torch.linalg.vector_norm(self.hidden, dim=2)

    @cached_property
    def sorted_norms(self) -> Float64[Tensor, "R N"]:
        """Token norms from large to small, float64."""
        return self.norms.double().sort(1, descending=True).values

    @cached_property
    def energies(self) -> Float64[Tensor, "R N"]:
        """Token energies e_n = a_n^2 from large to small, float64."""
        return self.sorted_norms.square()

    @cached_property
    def _mean_and_direction(self) -> Tensor:
        """(R, 2, D): the mean token and the sum of unit tokens, from one pass."""
        weights = torch.stack([self.mask / self.counts[:, None].clamp(min=1), self.inverse_norms(self.norms)], 1)
        return weights @ self.hidden

    @property
    def mean(self) -> Float32[Tensor, "R D"]:
        """The mean token mu."""
        return self._mean_and_direction[:, 0]

    @cached_property
    def _centred_and_norms(self) -> tuple[Tensor, Tensor]:
        centred = self.hidden - self.mean[:, None]
        if not self.full:
            centred *= self.mask[..., None]
        norms = torch.linalg.vector_norm(centred, dim=2)
        equal = torch.linalg.vector_norm(norms, dim=1) <= _ROUNDING * torch.linalg.vector_norm(self.norms, dim=1)
        if equal.any():
            centred[equal], norms[equal] = 0.0, 0.0
        return centred, norms

    @property
    def centred(self) -> Float32[Tensor, "R N D"]:
        """Tokens minus their mean; zeros at padding, and in rows whose tokens are equal but for rounding."""
        return self._centred_and_norms[0]

    def spectrum(self, centred: bool = False) -> Float64[Tensor, "R K"]:
        """Squared singular values sigma_i^2 from large to small, K = min(N, D)."""
        return self._spectrum.eigenvalues[int(centred)]

    def top_directions(self, k: int = 5) -> Float32[Tensor, "R D k"]:
        """Right singular vectors of the k largest singular values; zero columns beyond the rank."""
        if self.hidden.shape[1] == 0:
            return self.hidden.new_zeros(len(self.hidden), self.hidden.shape[2], k)
        return self._spectrum.top_directions(k)

    @cached_property
    def _spectrum(self) -> Spectrum:
        return Spectrum(self.centred, self.mean, self.counts)

    def mean_cosine(self, centred: bool = False) -> Float64[Tensor, " R"]:
        """Mean cosine over pairs of tokens that have a norm; NaN where fewer than two have."""
        if centred:
            inverse = self.inverse_norms(self._centred_and_norms[1], _ROUNDING * self.norms)
            direction = (inverse[:, None] @ self.centred)[:, 0]
        else:
            inverse, direction = self.inverse_norms(self.norms), self._mean_and_direction[:, 1]
        n = (inverse > 0).sum(1).double()
        return ((direction.double().square().sum(1) - n) / (n * (n - 1))).where(n > 1, torch.nan)

    def without_massive(self) -> tuple[Int64[Tensor, " M"], Shared | None]:
        """Rows that have massive tokens, and the tokens of these rows without them."""
        rows = self.massive.any(1).nonzero()[:, 0]
        if not len(rows):
            return rows, None
        return rows, gather_tokens(self.hidden[rows], (self.mask & ~self.massive)[rows])

    @cached_property
    def massive(self) -> Bool[Tensor, "R N"]:
        """Which tokens are massive (`registry.MASSIVE_RATIO`)."""
        return on_norms.massive_tokens(self.norms.double(), self.sorted_norms)

    @staticmethod
    def inverse_norms(norms: Tensor, floor: Tensor | float = 0.0) -> Tensor:
        """1 / norm, and zero where the norm does not exceed `floor`."""
        return torch.where(norms > floor, norms.reciprocal(), 0.0)


def gather_tokens(hidden: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Shared:
    """The masked tokens of each row moved to the front, as float32, with no more places than the longest row needs."""
    if hidden.shape[:2] != mask.shape:
        raise ConfigError(
            f"mask has shape {tuple(mask.shape)}; expected {tuple(hidden.shape[:2])} as the hidden states"
        )
    counts = mask.sum(1)
    fewest, most = (int(c) for c in counts.aminmax()) if len(counts) else (0, 0)
    if fewest == mask.shape[1]:
        return Shared(hidden.float(), counts)
    tokens = hidden.flatten(0, 1).index_select(0, mask.flatten().nonzero()[:, 0]).float()
    if fewest == most:
        return Shared(tokens.view(len(counts), most, hidden.shape[2]), counts)
    packed = tokens.new_zeros(len(counts), most, hidden.shape[2])
    packed[torch.arange(most, device=mask.device) < counts[:, None]] = tokens
    return Shared(packed, counts)
