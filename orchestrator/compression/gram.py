"""Gram matrices of an image's tokens: raw, centred, without massive tokens, all from one product.

The mean of the tokens that are not massive (the pivot) is subtracted, and the product of these differences is formed
once. Adding the mean back (raw) and excluding massive tokens are then cheap and lose no precision: neither a large
mean nor a massive token is subtracted from a product that contains it. If there are more tokens than dimensions, the
matrices are D x D, with a second product for the tokens that are not massive.

Shapes: R rows (an image, group and layer each), N tokens, D width, K = min(N, D), b columns of a leading block.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from orchestrator.compression.halves import LEAN, halves_product, self_product


class Variant(NamedTuple):
    """Variant of a metric's tokens: mean subtracted (`centred`), massive tokens excluded (`trimmed`)."""

    centred: bool = False
    trimmed: bool = False

    @property
    def suffix(self) -> str:
        """Suffix of the column name."""
        return "_centred" * self.centred + "_trimmed" * self.trimmed


class Grams:
    """Gram matrices of the rows of a batch.

    Args:
        tokens: (R, N, D) float32 minus `pivot`.
        pivot: (R, D), the mean of the tokens that are not massive.
        mask, kept: (R, N), valid tokens, and valid tokens that are not massive.
        trimmed: whether some row may have massive tokens; False only if it is known that none has.
        exact: float32 (or wider) products on a GPU; else three products of bfloat16 halves, 2e-5 relative.
        live: (R, N), tokens whose difference is used; the others count as zeros. All when None.
        size: (R,), about the largest norm of a token or of the mean; computed when None.
    """

    def __init__(
        self,
        tokens: Float[Tensor, "R N D"],
        pivot: Float[Tensor, "R D"],
        mask: Bool[Tensor, "R N"],
        kept: Bool[Tensor, "R N"],
        trimmed: bool = True,
        exact: bool = False,
        *,
        live: Bool[Tensor, "R N"] | None = None,
        size: Float[Tensor, " R"] | None = None,
    ) -> None:
        # All metrics of Gram matrices are scale-free: the largest token or mean is scaled to 1, so that no square
        # overflows.
        if size is None:
            size = torch.maximum(
                torch.linalg.vector_norm(tokens, dim=2).amax(1), torch.linalg.vector_norm(pivot, dim=1)
            )
        size = size.clamp(min=torch.finfo(torch.float32).tiny)
        self._differences, self.pivot = tokens, pivot / size[:, None]
        scale = size.reciprocal()[:, None]
        self._factor = scale if live is None else scale * live  # R, N or R, 1
        self.mask, self.kept, self.trimmed, self.exact = mask, kept, trimmed, exact
        self.halves = tokens.device.type in LEAN and not exact
        self.by_tokens = tokens.shape[1] <= tokens.shape[2]
        self._matrices: dict[Variant, Tensor] = {}
        self._mirrors: dict[Variant, Tensor] = {}

    @cached_property
    def tokens(self) -> Float[Tensor, "R N D"]:
        """Tokens minus the pivot, scaled; zero for tokens that are not `live`."""
        return self._differences * self._factor[..., None]

    def rows(self, chosen: Int64[Tensor, " M"], dtype: torch.dtype) -> Grams:
        """The Gram matrices of some rows, in another precision."""
        parts = (self.tokens[chosen].to(dtype), self.pivot[chosen].to(dtype), self.mask[chosen], self.kept[chosen])
        return Grams(*parts, self.trimmed, exact=True)

    def _onto(self, columns: Float[Tensor, "R D k"]) -> Float[Tensor, "R N k"]:
        """Products of tokens with columns. On a GPU the tokens are read in place, without a scaled copy."""
        return (self._differences @ columns) * self._factor[..., None] if self.halves else self.tokens @ columns

    def down(self, rows: Float[Tensor, "R k N"]) -> Float[Tensor, "R k D"]:
        """Sums of tokens weighted by rows."""
        return (rows * self._factor[:, None]) @ self._differences if self.halves else rows @ self.tokens

    def counts(self, variant: Variant) -> Int64[Tensor, " R"]:
        """Mask of the tokens of a variant."""
        return (self.kept if variant.trimmed else self.mask).sum(1)

    def plain(self, variant: Variant) -> Variant:
        """The equivalent variant without trimming, if no row has massive tokens."""
        return variant if self.trimmed else Variant(variant.centred)

    def matrix(self, variant: Variant) -> Float[Tensor, "R K K"]:
        """One variant's Gram matrices, up to a reflection (`turned`); zeros at padding."""
        variant = self.plain(variant)
        if variant not in self._matrices:
            make = self._token_side if self.by_tokens else self._width_side
            self._matrices[variant] = make(variant)
        return self._matrices[variant]

    def spread(self, rows: Float[Tensor, "R b N"], variant: Variant) -> Float[Tensor, "R b D"]:
        """U H of the variant's tokens H, for weights U."""
        if variant.trimmed:
            rows = rows * self.kept[:, None]
        basis = self.down(rows)
        if not variant.centred:
            basis = torch.addcmul(basis, (rows * self.mask[:, None]).sum(2, keepdim=True), self.pivot[:, None])
        return basis

    def turned(self, rows: Float[Tensor, "R b K"], variant: Variant) -> Float[Tensor, "R b K"]:
        """Vectors from the coordinates of `matrix` to those of tokens (or dimensions), or back."""
        mirror = self._mirrors.get(self.plain(variant))
        return rows if mirror is None else torch.addcmul(rows, rows @ mirror[..., None], mirror[:, None], value=-2)

    def _with_mean(self, variant: Variant, gram: Tensor, axis: Tensor, border: Tensor) -> Float[Tensor, "R K K"]:
        """gram + axis border^T + border axis^T, in coordinates whose first one is the unit vector `axis`.

        A large mean then affects one row and column only, and does not reduce the precision of the other entries.
        """
        mirror = self.mirror(variant, axis)
        half = (gram @ mirror[..., None])[..., 0]
        half = half - mirror * (mirror * half).sum(1, keepdim=True)
        border = self.turned(border[:, None], variant)[:, 0]
        first = torch.zeros_like(axis)
        first[:, 0] = 1.0
        left = torch.stack([-2 * half, -2 * mirror, first, border], 2)
        return torch.baddbmm(gram, left, torch.stack([mirror, half, border, first], 1))

    def mirror(self, variant: Variant, axis: Float[Tensor, "R K"]) -> Float[Tensor, "R K"]:
        """Unit normal of the reflection that takes the unit vector `axis` to the first coordinate."""
        if variant not in self._mirrors:
            first = torch.zeros_like(axis)
            first[:, 0] = 1.0
            is_nonzero = axis.square().sum(1, keepdim=True) > 0.5
            self._mirrors[variant] = torch.nn.functional.normalize(first - axis, dim=1) * is_nonzero
        return self._mirrors[variant]

    # ------------------------------------------------------------ N x N

    @cached_property
    def product(self) -> Float[Tensor, "R K K"]:
        if self.halves and self.by_tokens:
            return halves_product(self._differences, self._factor[..., None])
        return self_product(self.tokens if self.by_tokens else self.tokens.mT, self.exact)

    def _token_side(self, variant: Variant) -> Float[Tensor, "R N N"]:
        gram = self.product
        present = (self.kept if variant.trimmed else self.mask).to(gram.dtype)
        if variant.trimmed:
            gram = gram * present[:, :, None] * present[:, None, :]
        if not variant.centred:
            axis, border = self.mean_terms(variant)
            return self._with_mean(variant, gram, axis, border)
        if self.trimmed and not variant.trimmed:
            shares = present / present.sum(1, keepdim=True).clamp(min=1)
            rows = (gram @ shares[..., None])[..., 0]
            cross = (rows - 0.5 * (rows * shares).sum(1, keepdim=True))[:, :, None] * present[:, None, :]
            gram = (gram - cross - cross.mT) * (present[:, :, None] * present[:, None, :])
        return gram

    def mean_terms(self, variant: Variant) -> tuple[Float[Tensor, "R N"], Float[Tensor, "R N"]]:
        """Unit vector `a` and vector `b` of the mean's contribution to a Gram matrix, a b^T + b a^T."""
        present = (self.kept if variant.trimmed else self.mask).to(self.pivot.dtype)
        root = present.sum(1, keepdim=True).sqrt()
        axis = present / root.clamp(min=1)
        border = root * self._projected * present
        return axis, border + 0.5 * root.square() * self.pivot.square().sum(1, keepdim=True) * axis

    @cached_property
    def _projected(self) -> Float[Tensor, "R N"]:
        return self._onto(self.pivot[..., None])[..., 0]

    # ------------------------------------------------------------ D x D

    @cached_property
    def _product_without_massive(self) -> Float[Tensor, "R D D"]:
        return self_product((self.tokens * self.kept[..., None]).mT, self.exact)

    def _width_side(self, variant: Variant) -> Float[Tensor, "R D D"]:
        gram = self._product_without_massive if variant.trimmed else self.product
        counts = self.counts(variant)[:, None].to(gram.dtype).clamp(min=1)
        total = self.tokens.sum(1) * (not variant.trimmed)  # tokens without massive ones have a mean of zero
        if variant.centred:
            return gram - total[:, :, None] * (total / counts)[:, None, :]
        length = torch.linalg.vector_norm(self.pivot, dim=1, keepdim=True)
        axis = self.pivot / length.clamp(min=torch.finfo(gram.dtype).tiny)
        return self._with_mean(variant, gram, axis, length * (total + 0.5 * counts * self.pivot))
