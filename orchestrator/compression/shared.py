"""Tokens of some rows and what metrics share of them. `R` rows, `N` tokens, `D` width, `K` = min(N, D)."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from orchestrator.compression import norms as on_norms
from orchestrator.compression.estimate import Estimate, estimate
from orchestrator.compression.gram import Grams, Leading, Variant
from orchestrator.compression.spectrum import squared_singular_values
from orchestrator.errors import ConfigError

_ROUNDING = 2e-6
"""Centred tokens of less than this share of the raw norm are rounding noise of the subtraction, taken as zero."""


class Shared:
    """Tokens of some rows and what metrics share of them, each computed once when first asked for.

    Attributes:
        hidden: (R, N, D) float32, the tokens of each row first, zeros after them.
        mask: (R, N) bool, where tokens are.
        counts: (R,) int64, tokens of each row.
        exact: products in full float32 on a GPU too, as an exact spectrum needs them.
    """

    def __init__(
        self, hidden: Float32[Tensor, "R N D"], counts: Int64[Tensor, " R"], *, exact: bool = False, full: bool = False
    ) -> None:
        self.hidden, self.counts, self.exact, self.full = hidden, counts, exact, full
        self.mask = torch.arange(hidden.shape[1], device=hidden.device) < counts[:, None]

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
    def massive(self) -> Bool[Tensor, "R N"]:
        """Which tokens are massive (`entries.MASSIVE_RATIO`)."""
        return on_norms.massive_tokens(self.norms.double(), self.sorted_norms)

    @cached_property
    def trims(self) -> bool:
        """Whether a token may be massive; asked for only where the answer is at hand."""
        return may_be(self.massive)

    @cached_property
    def kept(self) -> Bool[Tensor, "R N"]:
        """Tokens that are not massive."""
        return self.mask & ~self.massive if self.trims else self.mask

    def sizes(self, variant: Variant) -> tuple[Float64[Tensor, "R N"], Int64[Tensor, " R"]]:
        """Sorted norms and number of the tokens that a variant sees."""
        if not (variant.trimmed and self.trims):
            return self.sorted_norms, self.counts
        norms = self.norms.double().masked_fill(self.massive, 0.0).sort(1, descending=True).values
        return norms, self.kept.sum(1)

    # ------------------------------------------------------------ relative to the mean

    @cached_property
    def _sums(self) -> Tensor:
        """(R, 3, D): mean of the tokens that are not massive, and sums of unit tokens, of all and of these."""
        units = inverse(self.norms)
        weights = [self.kept / self.kept.sum(1, keepdim=True).clamp(min=1), units]
        if self.trims:
            weights.append(units * self.kept)
        return torch.stack([weight.to(self.hidden.dtype) for weight in weights], 1) @ self.hidden

    @property
    def pivot(self) -> Float32[Tensor, "R D"]:
        """The mean of the tokens that are not massive: of all tokens, where none is."""
        return self._sums[:, 0]

    @cached_property
    def spread(self) -> Float32[Tensor, "R N D"]:
        """Tokens minus the pivot; zeros at padding, and for tokens that are equal but for rounding."""
        spread = self.hidden - self.pivot[:, None]
        if not self.full:
            spread = spread * self.mask[..., None]
        norms = torch.linalg.vector_norm(spread, dim=2)
        rest, raw = (torch.linalg.vector_norm(n * self.kept, dim=1) for n in (norms, self.norms))
        equal = rest <= _ROUNDING * raw
        return spread.masked_fill((equal[:, None] & self.kept)[..., None], 0.0) if may_be(equal) else spread

    @cached_property
    def grams(self) -> Grams:
        """Gram matrices of all variants."""
        return Grams(self.spread, self.pivot, self.mask, self.kept, self.trims, self.exact)

    @cached_property
    def _leading(self) -> dict[Variant, Leading]:
        return {}

    def leading(self, variant: Variant) -> Leading:
        """Trace, norm and leading block of a variant's Gram matrix."""
        variant = self.grams.plain(variant)
        if variant not in self._leading:
            self._leading[variant] = self.grams.leading(variant)
        return self._leading[variant]

    @cached_property
    def _spectra(self) -> dict[Variant, Tensor]:
        return {}

    def spectrum(self, centred: bool = False, trimmed: bool = False) -> Float64[Tensor, "R K"]:
        """Squared singular values sigma_i^2 from large to small, K = min(N, D): all of them, exactly."""
        variant = self.grams.plain(Variant(centred, trimmed))
        if variant not in self._spectra:
            self._spectra[variant] = squared_singular_values(self.grams, variant)
        return self._spectra[variant]

    @cached_property
    def _estimates(self) -> dict[Variant, Estimate]:
        return {}

    def estimate(self, variant: Variant) -> Estimate:
        """Estimates of what needs all singular values, with standard errors."""
        variant = self.grams.plain(variant)
        if variant not in self._estimates:
            self._estimates[variant] = estimate(self.grams, variant)
        return self._estimates[variant]

    def mean_cosine(self, variant: Variant) -> Float64[Tensor, " R"]:
        """Mean cosine over pairs of tokens that have a norm; NaN where fewer than two have."""
        trimmed = variant.trimmed and self.trims
        kept = self.kept if trimmed else self.mask
        if not variant.centred:
            units, direction = inverse(self.norms) * kept, self._sums[:, 2 if trimmed else 1]
        else:
            # relative to the variant's own mean: the pivot, but for all tokens where some are massive
            offset = self.spread.sum(1) / self.counts[:, None].clamp(min=1) if self.trims and not trimmed else None
            squares = self.spread.square().sum(2)
            if offset is not None:
                cross = (self.spread @ offset[..., None])[..., 0]
                squares = (squares - 2 * cross + offset.square().sum(1, keepdim=True)).clamp(min=0)
            units = inverse(squares.sqrt(), _ROUNDING * self.norms) * kept
            direction = (units[:, None] @ self.spread)[:, 0]
            if offset is not None:
                direction = direction - units.sum(1, keepdim=True) * offset
        n = (units > 0).sum(1).double()
        return ((direction.double().square().sum(1) - n) / (n * (n - 1))).where(n > 1, torch.nan)


def may_be(flags: Bool[Tensor, ...]) -> bool:
    """Whether a flag is set, where asking is free; on a GPU, whose host would have to wait, always True."""
    return flags.device.type != "cpu" or bool(flags.any())


def inverse(norms: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """1 / norm, and zero where the norm does not exceed `floor`."""
    return torch.where(norms > floor, norms.reciprocal(), 0.0)


def gather_tokens(
    hidden: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]
) -> tuple[Float[Tensor, "B T D"], Int64[Tensor, " B"], bool]:
    """The masked tokens of each row moved to the front, T the most that a row has; their counts; whether all have T.

    Raises:
        ConfigError: shapes that do not fit.
    """
    if hidden.shape[:2] != mask.shape:
        raise ConfigError(
            f"mask has shape {tuple(mask.shape)}; expected {tuple(hidden.shape[:2])} as the hidden states"
        )
    here = mask.cpu()
    counts = here.sum(1)
    if hidden.shape[1] == 0:
        hidden, here = hidden.new_zeros(len(hidden), 1, hidden.shape[2]), here.new_zeros(len(hidden), 1)
    most = max(1, int(counts.max()) if len(counts) else 0)
    full = bool((counts == most).all())
    on_device = counts.to(hidden.device)
    if full and most == here.shape[1]:
        return hidden, on_device, True
    order = here.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    places = order + torch.arange(len(here))[:, None] * hidden.shape[1]
    tokens = hidden.flatten(0, 1).index_select(0, places.flatten().to(hidden.device))
    return tokens.view(len(here), most, hidden.shape[2]), on_device, full
