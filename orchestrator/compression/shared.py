"""Tokens of some rows, and intermediate results shared by metrics. `R` rows, `N` tokens, `D` width, `K` = min(N, D)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from orchestrator.compression import norms as on_norms
from orchestrator.compression.estimate import Estimate, estimate
from orchestrator.compression.gram import Grams, Variant
from orchestrator.compression.halves import LEAN, wide_product
from orchestrator.compression.leading import Leading, leading_blocks
from orchestrator.compression.spectrum import squared_singular_values
from orchestrator.errors import ConfigError

_ROUNDING = 2e-6
"""Centred tokens of less than this share of the raw norm are rounding noise of the subtraction, set to zero."""


class Shared:
    """Tokens of some rows, and intermediate results shared by metrics, each computed on first use.

    Attributes:
        states: (R, N, D), the tokens of each row first; padding is finite and not used.
        mask: (R, N) bool, valid tokens.
        counts: (R,) int64, number of tokens of each row.
        exact: full float32 products on a GPU too, as needed by an exact spectrum.
        full: whether all rows are known to have N tokens.
    """

    def __init__(
        self, states: Float[Tensor, "R N D"], counts: Int64[Tensor, " R"], *, exact: bool = False, full: bool = False
    ) -> None:
        self.states, self.counts, self.exact, self.full = states, counts, exact, full
        self.mask = torch.arange(states.shape[1], device=states.device) < counts[:, None]

    @cached_property
    def hidden(self) -> Float32[Tensor, "R N D"]:
        """The tokens in float32, zero at padding; for metrics of other packages."""
        hidden = self.states.float()
        return hidden if self.full else hidden.masked_fill(~self.mask[..., None], 0.0)

    @cached_property
    def norms(self) -> Float32[Tensor, "R N"]:
        """Token norms a_n, zero at padding."""
        norms = torch.linalg.vector_norm(self.states, dim=2, dtype=torch.float32)
        return norms if self.full else norms.masked_fill(~self.mask, 0.0)

    @cached_property
    def sorted_norms(self) -> Float64[Tensor, "R N"]:
        """Token norms in descending order, float64."""
        return self.norms.double().sort(1, descending=True).values

    @cached_property
    def energies(self) -> Float64[Tensor, "R N"]:
        """Token energies e_n = a_n^2 in descending order, float64."""
        return self.sorted_norms.square()

    @cached_property
    def massive(self) -> Bool[Tensor, "R N"]:
        """Mask of massive tokens (`entries.MASSIVE_RATIO`)."""
        return on_norms.massive_tokens(self.norms.double(), self.sorted_norms)

    @cached_property
    def trims(self) -> bool:
        """Whether a token may be massive; evaluated only where it needs no synchronization."""
        return may_be(self.massive)

    @cached_property
    def kept(self) -> Bool[Tensor, "R N"]:
        """Mask of tokens that are not massive."""
        return self.mask & ~self.massive if self.trims else self.mask

    def sizes(self, variant: Variant) -> tuple[Float64[Tensor, "R N"], Int64[Tensor, " R"]]:
        """Sorted norms, and number of tokens, of a variant."""
        if not (variant.trimmed and self.trims):
            return self.sorted_norms, self.counts
        norms = self.norms.double().masked_fill(self.massive, 0.0).sort(1, descending=True).values
        return norms, self.kept.sum(1)

    # ------------------------------------------------------------ relative to the mean

    @cached_property
    def _sums(self) -> Float32[Tensor, "R 3 D"]:
        """Mean of the tokens that are not massive, and sums of unit tokens: all, and those that are not massive."""
        units = inverse(self.norms)
        weights = [self.kept / self.kept.sum(1, keepdim=True).clamp(min=1), units]
        if self.trims:
            weights.append(units * self.kept)
        return weighted(torch.stack(weights, 1), self.states)

    @property
    def pivot(self) -> Float32[Tensor, "R D"]:
        """The mean of the tokens that are not massive (of all tokens if none is massive)."""
        return self._sums[:, 0]

    @cached_property
    def spread(self) -> Float32[Tensor, "R N D"]:
        """Tokens minus the pivot; undefined where `live` is false."""
        return self.states - self.pivot[:, None]

    @cached_property
    def spread_norms(self) -> Float32[Tensor, "R N"]:
        """Norms of `spread`; zero where `live` is false."""
        return self._distances * self.live

    @cached_property
    def _distances(self) -> Float32[Tensor, "R N"]:
        return torch.linalg.vector_norm(self.spread, dim=2)

    @cached_property
    def live(self) -> Bool[Tensor, "R N"]:
        """Mask of tokens whose difference from the pivot is used: no padding, and larger than rounding noise."""
        norms = self._distances
        rest, raw = (torch.linalg.vector_norm(n * self.kept, dim=1) for n in (norms, self.norms))
        equal = rest <= _ROUNDING * raw
        return self.mask & ~(equal[:, None] & self.kept) if may_be(equal) else self.mask

    @cached_property
    def grams(self) -> Grams:
        """Gram matrices of all variants."""
        return Grams(
            self.spread,
            self.pivot,
            self.mask,
            self.kept,
            self.trims,
            self.exact,
            live=None if self.full and self.live is self.mask else self.live,
            size=self.norms.amax(1),
        )

    @cached_property
    def _leading(self) -> dict[Variant, Leading]:
        return {}

    def leading(self, variant: Variant, among: Sequence[Variant] = ()) -> Leading:
        """Trace, norm and leading block of a variant's Gram matrix; those of `among` are computed in the same batch."""
        variant = self.grams.plain(variant)
        if variant not in self._leading:
            variants = dict.fromkeys(self.grams.plain(v) for v in (variant, *among))
            self._leading |= leading_blocks(self.grams, [v for v in variants if v not in self._leading])
        return self._leading[variant]

    @cached_property
    def _spectra(self) -> dict[Variant, Tensor]:
        return {}

    def spectrum(self, centred: bool = False, trimmed: bool = False) -> Float64[Tensor, "R K"]:
        """All squared singular values sigma_i^2, exact, in descending order; K = min(N, D)."""
        variant = self.grams.plain(Variant(centred, trimmed))
        if variant not in self._spectra:
            self._spectra[variant] = squared_singular_values(self.grams, variant)
        return self._spectra[variant]

    @cached_property
    def _estimates(self) -> dict[Variant, Estimate]:
        return {}

    def estimate(self, variant: Variant) -> Estimate:
        """Estimates of the metrics of the full spectrum, with standard errors."""
        variant = self.grams.plain(variant)
        if variant not in self._estimates:
            self._estimates[variant] = estimate(self.grams, variant)
        return self._estimates[variant]

    def mean_cosine(self, variant: Variant) -> Float64[Tensor, " R"]:
        """Mean cosine over pairs of tokens of nonzero norm; NaN for fewer than two."""
        trimmed = variant.trimmed and self.trims
        if variant.centred:
            units, direction = self._centred_units[int(trimmed)]
        else:
            units = inverse(self.norms) * (self.kept if trimmed else self.mask)
            direction = self._sums[:, 2 if trimmed else 1]
        n = (units > 0).sum(1).double()
        return ((direction.double().square().sum(1) - n) / (n * (n - 1))).where(n > 1, torch.nan)

    @cached_property
    def _centred_units(self) -> list[tuple[Float32[Tensor, "R N"], Float32[Tensor, "R D"]]]:
        """1 / norm of each centred token, and the sum of centred unit tokens: of all tokens, and of those that are not
        massive."""
        floor = _ROUNDING * self.norms
        kept = inverse(self.spread_norms, floor) * self.kept
        if not self.trims:
            return [(kept, weighted((kept * self.live)[:, None], self.spread)[:, 0])] * 2
        # the mean of all tokens differs from the pivot if some are massive
        live = self.live.float()
        shares = live / self.counts[:, None].clamp(min=1)
        offset = weighted(shares[:, None], self.spread)[:, 0]
        cross = (self.spread @ offset[..., None])[..., 0] * live
        squares = self.spread_norms.square() - 2 * cross + offset.square().sum(1, keepdim=True)
        every = inverse(squares.clamp(min=0).sqrt(), floor) * self.mask
        sums = weighted(torch.stack([every * live, kept * live], 1), self.spread)
        return [(every, sums[:, 0] - every.sum(1, keepdim=True) * offset), (kept, sums[:, 1])]


def weighted(weights: Float32[Tensor, "R k N"], tokens: Float[Tensor, "R N D"]) -> Float32[Tensor, "R k D"]:
    """Weighted sums of tokens. On a GPU, bfloat16 tokens are read without a cast and weights are split into two
    halves."""
    if tokens.dtype not in (torch.bfloat16, torch.float16):
        return weights.to(tokens.dtype) @ tokens
    high = weights.to(tokens.dtype)
    halves = torch.cat([high, (weights - high).to(tokens.dtype)], 1)
    sums = wide_product(halves, tokens)
    return sums[:, : weights.shape[1]] + sums[:, weights.shape[1] :]


def may_be(flags: Bool[Tensor, ...]) -> bool:
    """Whether a flag is set on the CPU; always True on a GPU, where reading it would synchronize."""
    return flags.device.type in LEAN or bool(flags.any())


def inverse(norms: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """1 / norm; zero if the norm does not exceed `floor`."""
    return torch.where(norms > floor, norms.reciprocal(), 0.0)


def gather_tokens(
    hidden: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]
) -> tuple[Float[Tensor, "B T D"], Int64[Tensor, " B"], bool]:
    """Masked tokens moved to the front of each row, T the largest number in a row; counts; whether all rows have T.

    Raises:
        ConfigError: shapes do not match.
    """
    if hidden.shape[:2] != mask.shape:
        raise ConfigError(
            f"mask has shape {tuple(mask.shape)}; expected {tuple(hidden.shape[:2])} as the hidden states"
        )
    mask_cpu = mask.cpu()
    counts = mask_cpu.sum(1)
    if hidden.shape[1] == 0:
        hidden, mask_cpu = hidden.new_zeros(len(hidden), 1, hidden.shape[2]), mask_cpu.new_zeros(len(hidden), 1)
    max_count = max(1, int(counts.max()) if len(counts) else 0)
    full = bool((counts == max_count).all())
    on_device = counts.to(hidden.device)
    if full and max_count == mask_cpu.shape[1]:
        return hidden, on_device, True
    order = mask_cpu.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :max_count]
    order = order.where(torch.arange(max_count) < counts[:, None], order[:, :1])  # padding is finite if the row is
    places = order + torch.arange(len(mask_cpu))[:, None] * hidden.shape[1]
    tokens = hidden.flatten(0, 1).index_select(0, places.flatten().to(hidden.device))
    return tokens.view(len(mask_cpu), max_count, hidden.shape[2]), on_device, full
