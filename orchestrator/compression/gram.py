"""Gram matrices of an image's tokens: raw, centred, without massive tokens, all from one product.

The mean of the tokens that are not massive (the pivot) is subtracted, and the product of these differences is formed
once. Adding the mean back (raw) and excluding massive tokens are then cheap and lose no precision: neither a large
mean nor a massive token is subtracted from a product that contains it. If there are more tokens than dimensions, the
matrices are D x D, with a second product for the tokens that are not massive.

Shapes: R rows (an image, group and layer each), N tokens, D width, K = min(N, D), b columns of a leading block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from orchestrator.compression.halves import LEAN, halves_product, self_product
from orchestrator.compression.subspace import leading_rows


class Variant(NamedTuple):
    """Variant of a metric's tokens: mean subtracted (`centred`), massive tokens excluded (`trimmed`)."""

    centred: bool = False
    trimmed: bool = False

    @property
    def suffix(self) -> str:
        """Suffix of the column name."""
        return "_centred" * self.centred + "_trimmed" * self.trimmed


@dataclass(frozen=True)
class Leading:
    """The leading block of some rows' Gram matrices; see `finish.ritz`.

    `trace` and `frobenius` (R,) belong to the whole matrix; `ritz` (R, b, b) is its projection on the block; `basis`
    (R, D, b) is the block in the D dimensions of the tokens, and `metric` (R, b, b) the Gram matrix of `basis`.
    """

    trace: Float[Tensor, " R"]
    frobenius: Float[Tensor, " R"]
    ritz: Float[Tensor, "R b b"]
    metric: Float[Tensor, "R b b"]
    basis: Float[Tensor, "R D b"]


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
        self._halves = tokens.device.type in LEAN and not exact
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
        return (self._differences @ columns) * self._factor[..., None] if self._halves else self.tokens @ columns

    def _down(self, rows: Float[Tensor, "R k N"]) -> Float[Tensor, "R k D"]:
        """Sums of tokens weighted by rows."""
        return (rows * self._factor[:, None]) @ self._differences if self._halves else rows @ self.tokens

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

    def leading(self, variants: Sequence[Variant]) -> dict[Variant, Leading]:
        """Trace, norm and leading block of each variant."""
        variants = list(dict.fromkeys(self.plain(v) for v in variants))
        if not variants:
            return {}
        if self.by_tokens and self._halves:
            return self._token_leading(variants)
        return self._matrix_leading(variants)

    def _matrix_leading(self, variants: Sequence[Variant]) -> dict[Variant, Leading]:
        """The same from explicit matrices, in one batch: fastest while they stay in a processor's caches."""
        matrices = [self.matrix(variant) for variant in variants]
        n = len(self.mask)

        def apply(x: Tensor) -> Tensor:
            y = torch.empty_like(x)
            for matrix, some, out in zip(matrices, x.split(n), y.split(n), strict=True):
                torch.bmm(some, matrix, out=out)
            return y

        block = leading_rows(apply, n * len(variants), matrices[0].shape[1], matrices[0]).contiguous()
        projected = (apply(block) @ block.mT).split(n)
        leading = {}
        for variant, matrix, ritz, some in zip(variants, matrices, projected, block.split(n), strict=True):
            trace, norm = matrix.diagonal(dim1=1, dim2=2).sum(1), torch.linalg.matrix_norm(matrix)
            basis = self.turned(some, variant)
            if self.by_tokens:
                basis = self._spread(basis, variant)
            # not `ritz` of tokens: beside a massive one its rounding error exceeds a faint direction's squared length
            leading[variant] = Leading(trace, norm, ritz, basis @ basis.mT, basis.mT)
        return leading

    def _spread(self, rows: Float[Tensor, "R b N"], variant: Variant) -> Float[Tensor, "R b D"]:
        """U H of the variant's tokens H, for weights U."""
        if variant.trimmed:
            rows = rows * self.kept[:, None]
        basis = self._down(rows)
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
        mirror = self._mirror(variant, axis)
        half = (gram @ mirror[..., None])[..., 0]
        half = half - mirror * (mirror * half).sum(1, keepdim=True)
        border = self.turned(border[:, None], variant)[:, 0]
        first = torch.zeros_like(axis)
        first[:, 0] = 1.0
        left = torch.stack([-2 * half, -2 * mirror, first, border], 2)
        return torch.baddbmm(gram, left, torch.stack([mirror, half, border, first], 1))

    def _mirror(self, variant: Variant, axis: Float[Tensor, "R K"]) -> Float[Tensor, "R K"]:
        """Unit normal of the reflection that takes the unit vector `axis` to the first coordinate."""
        if variant not in self._mirrors:
            first = torch.zeros_like(axis)
            first[:, 0] = 1.0
            is_nonzero = axis.square().sum(1, keepdim=True) > 0.5
            self._mirrors[variant] = torch.nn.functional.normalize(first - axis, dim=1) * is_nonzero
        return self._mirrors[variant]

    # ------------------------------------------------------------ N x N

    @cached_property
    def _product(self) -> Float[Tensor, "R K K"]:
        if self._halves and self.by_tokens:
            return halves_product(self._differences, self._factor[..., None])
        return self_product(self.tokens if self.by_tokens else self.tokens.mT, self.exact)

    def _token_side(self, variant: Variant) -> Float[Tensor, "R N N"]:
        gram = self._product
        present = (self.kept if variant.trimmed else self.mask).to(gram.dtype)
        if variant.trimmed:
            gram = gram * present[:, :, None] * present[:, None, :]
        if not variant.centred:
            axis, border = self._mean_terms(variant)
            return self._with_mean(variant, gram, axis, border)
        if self.trimmed and not variant.trimmed:
            shares = present / present.sum(1, keepdim=True).clamp(min=1)
            rows = (gram @ shares[..., None])[..., 0]
            cross = (rows - 0.5 * (rows * shares).sum(1, keepdim=True))[:, :, None] * present[:, None, :]
            gram = (gram - cross - cross.mT) * (present[:, :, None] * present[:, None, :])
        return gram

    def _mean_terms(self, variant: Variant) -> tuple[Float[Tensor, "R N"], Float[Tensor, "R N"]]:
        """Unit vector `a` and vector `b` of the mean's contribution to a Gram matrix, a b^T + b a^T."""
        present = (self.kept if variant.trimmed else self.mask).to(self.pivot.dtype)
        root = present.sum(1, keepdim=True).sqrt()
        axis = present / root.clamp(min=1)
        border = root * self._projected * present
        return axis, border + 0.5 * root.square() * self.pivot.square().sum(1, keepdim=True) * axis

    @cached_property
    def _projected(self) -> Float[Tensor, "R N"]:
        return self._onto(self.pivot[..., None])[..., 0]

    def _token_leading(self, variants: Sequence[Variant]) -> dict[Variant, Leading]:
        """Leading blocks of all variants at once, by products with one matrix; the variants' matrices are never formed.

        With P the product of differences, m a variant's tokens and w a vector: raw, (I - 2 w w^T) m P m (I - 2 w w^T)
        and the border of the mean (`_with_mean`); centred with massive tokens, the same with (I - w w^T), w the
        normalised ones; centred without them, m P m.
        """
        gram, n_variants = self._product, len(variants)
        frames = [self._frame(variant) for variant in variants]
        present, side, border = (torch.stack(parts, 1)[:, :, None] for parts in zip(*frames, strict=True))  # R V 1 N

        def inside(x: Tensor) -> Tensor:
            return present * (x - side * (side * x).sum(3, keepdim=True))

        def apply(rows: Tensor) -> Tensor:
            x = rows.unflatten(0, (-1, n_variants))  # R V b N
            y = present * (inside(x).flatten(1, 2) @ gram).view_as(x)
            y = y - side * (side * y).sum(3, keepdim=True)
            y = torch.addcmul(y, border, x[..., :1])
            y[..., :1] += (border * x).sum(3, keepdim=True)
            return y.flatten(0, 1)

        block = leading_rows(apply, len(gram) * n_variants, gram.shape[1], gram)
        ritz = (apply(block) @ block.mT).unflatten(0, (-1, n_variants))
        back = inside(block.unflatten(0, (-1, n_variants)))
        basis = self._down(back.flatten(1, 2)).view(*back.shape[:3], -1)  # R V b D
        shares = back.sum(3)
        for k, variant in enumerate(variants):
            if not variant.centred:
                basis[:, k].addcmul_(shares[:, k, :, None], self.pivot[:, None])
        traces, norms = self._sizes(variants, gram, present[:, :, 0].mT)
        return {
            variant: Leading(traces[:, k], norms[:, k], ritz[:, k], basis[:, k] @ basis[:, k].mT, basis[:, k].mT)
            for k, variant in enumerate(variants)
        }

    def _frame(self, variant: Variant) -> tuple[Tensor, Tensor, Tensor]:
        """The variant's mask m, w times the root of its factor, and the border in reflected coordinates; (R, N)."""
        present = (self.kept if variant.trimmed else self.mask).to(self.pivot.dtype)
        none = torch.zeros_like(present)
        if not variant.centred:
            axis, border = self._mean_terms(variant)
            mirror = self._mirror(variant, axis)
            return present, math.sqrt(2) * mirror, self.turned(border[:, None], variant)[:, 0]
        if self.trimmed and not variant.trimmed:
            return present, torch.nn.functional.normalize(present, dim=1), none
        return present, none, none

    def _sizes(
        self, variants: Sequence[Variant], gram: Float[Tensor, "R N N"], present: Float[Tensor, "R N V"]
    ) -> tuple[Float[Tensor, "R V"], Float[Tensor, "R V"]]:
        """Traces and Frobenius norms of the variants' matrices."""
        diagonal = gram.diagonal(dim1=1, dim2=2)[..., None]
        trace = (diagonal * present).sum(1)
        square = (present * (gram.square() @ present)).sum(1)
        terms = [self._mean_terms(v) if not v.centred else None for v in variants]
        norm = torch.nn.functional.normalize
        axes = torch.stack([t[0] if t else norm(present[..., k], dim=1) for k, t in enumerate(terms)], 2)
        images = present * (gram @ (present * axes))  # R N V
        traces, squares = [], []
        for k, (variant, term) in enumerate(zip(variants, terms, strict=True)):
            t, f, image = trace[:, k], square[:, k], images[..., k]
            if term is not None:  # + a b^T + b a^T
                a, b = term
                along = (a * b).sum(1)
                t = t + 2 * along
                f = f + 4 * (image * b).sum(1) + 2 * a.square().sum(1) * b.square().sum(1) + 2 * along.square()
            elif self.trimmed and not variant.trimmed:  # (I - a a^T) on both sides
                along = (axes[..., k] * image).sum(1)
                t = t - along
                f = f - 2 * image.square().sum(1) + along.square()
            traces.append(t)
            squares.append(f.clamp(min=0))
        return torch.stack(traces, 1), torch.stack(squares, 1).sqrt()

    # ------------------------------------------------------------ D x D

    @cached_property
    def _product_without_massive(self) -> Float[Tensor, "R D D"]:
        return self_product((self.tokens * self.kept[..., None]).mT, self.exact)

    def _width_side(self, variant: Variant) -> Float[Tensor, "R D D"]:
        gram = self._product_without_massive if variant.trimmed else self._product
        counts = self.counts(variant)[:, None].to(gram.dtype).clamp(min=1)
        total = self.tokens.sum(1) * (not variant.trimmed)  # tokens without massive ones have a mean of zero
        if variant.centred:
            return gram - total[:, :, None] * (total / counts)[:, None, :]
        length = torch.linalg.vector_norm(self.pivot, dim=1, keepdim=True)
        axis = self.pivot / length.clamp(min=torch.finfo(gram.dtype).tiny)
        return self._with_mean(variant, gram, axis, length * (total + 0.5 * counts * self.pivot))
