"""Gram matrices of an image's tokens: raw, centred, without massive tokens, all from one product.

Tokens are taken relative to the mean of those that are not massive, and the product of these differences is formed
once. Adding the mean back (raw) and leaving massive tokens out are then cheap and lose no precision: neither a large
mean nor a huge token is ever subtracted from a product that holds it. Where there are more tokens than dimensions the
matrices are D x D, with a second product for what is left without massive tokens.

Shapes: R rows (an image, group and layer each), N tokens, D width, K = min(N, D), b columns of a leading block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from orchestrator.compression.subspace import leading_block


class Variant(NamedTuple):
    """Which tokens a metric sees: minus their mean, and without massive ones."""

    centred: bool = False
    trimmed: bool = False

    @property
    def suffix(self) -> str:
        """What the column's name ends with."""
        return "_centred" * self.centred + "_trimmed" * self.trimmed


@dataclass(frozen=True)
class Leading:
    """The leading block of some rows' Gram matrices; see `finish.ritz`.

    `trace` and `frobenius` (R,) are of the whole matrix; `ritz` (R, b, b) is the matrix within the block; `basis`
    (R, D, b) the block in the space of the tokens' D dimensions, with `metric` (R, b, b) its own Gram matrix.
    """

    trace: Float[Tensor, " R"]
    frobenius: Float[Tensor, " R"]
    ritz: Float[Tensor, "R b b"]
    metric: Float[Tensor, "R b b"]
    basis: Float[Tensor, "R D b"]


class Grams:
    """Gram matrices of the rows of a batch.

    Args:
        tokens: (R, N, D) float32 minus `pivot`, zeros where no token is.
        pivot: (R, D), the mean of the tokens that are not massive.
        mask, kept: (R, N), where tokens are, and where tokens are that are not massive.
        trimmed: whether some row may have massive tokens; False only where it is known that none has.
        exact: float32 (or wider) products on a GPU; else three products of bfloat16 halves, 2e-5 relative.
    """

    def __init__(
        self,
        tokens: Float[Tensor, "R N D"],
        pivot: Float[Tensor, "R D"],
        mask: Bool[Tensor, "R N"],
        kept: Bool[Tensor, "R N"],
        trimmed: bool = True,
        exact: bool = False,
    ) -> None:
        # All metrics of Gram matrices are free of scale: the largest token or mean becomes 1, so that no square
        # overflows.
        size = torch.maximum(
            torch.linalg.vector_norm(tokens, dim=2).amax(1), torch.linalg.vector_norm(pivot, dim=1)
        ).clamp(min=torch.finfo(torch.float32).tiny)
        self.tokens, self.pivot = tokens / size[:, None, None], pivot / size[:, None]
        self.mask, self.kept, self.trimmed, self.exact = mask, kept, trimmed, exact
        self.by_tokens = tokens.shape[1] <= tokens.shape[2]
        self._matrices: dict[Variant, Tensor] = {}
        self._mirrors: dict[Variant, Tensor] = {}

    def rows(self, chosen: Int64[Tensor, " M"], dtype: torch.dtype) -> Grams:
        """Some rows, in another precision."""
        parts = (self.tokens[chosen].to(dtype), self.pivot[chosen].to(dtype), self.mask[chosen], self.kept[chosen])
        return Grams(*parts, self.trimmed, exact=True)

    def counts(self, variant: Variant) -> Int64[Tensor, " R"]:
        """Tokens of each row that the variant sees."""
        return (self.kept if variant.trimmed else self.mask).sum(1)

    def plain(self, variant: Variant) -> Variant:
        """The same without trimming where no row has massive tokens."""
        return variant if self.trimmed else Variant(variant.centred)

    def matrix(self, variant: Variant) -> Float[Tensor, "R K K"]:
        """One variant's Gram matrices, up to a reflection (`turned`); zeros at padding."""
        variant = self.plain(variant)
        if variant not in self._matrices:
            make = self._token_side if self.by_tokens else self._width_side
            self._matrices[variant] = make(variant)
        return self._matrices[variant]

    def leading(self, variant: Variant) -> Leading:
        """Trace, norm and leading block of one variant."""
        matrix = self.matrix(variant)
        block = leading_block(matrix)
        ritz = block.mT @ (matrix @ block)
        block = self.turned(block, variant)
        if self.by_tokens:
            metric, basis = ritz, self._spread(block, self.plain(variant))
        else:
            metric, basis = block.mT @ block, block
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        return Leading(diagonal.sum(1), torch.linalg.matrix_norm(matrix), ritz, metric, basis)

    def turned(self, block: Float[Tensor, "R K b"], variant: Variant) -> Float[Tensor, "R K b"]:
        """Columns from the coordinates of `matrix` to those of tokens (or dimensions), or back."""
        mirror = self._mirrors.get(self.plain(variant))
        return block if mirror is None else block - 2 * mirror[..., None] * (mirror[:, None] @ block)

    def _with_mean(self, variant: Variant, gram: Tensor, axis: Tensor, border: Tensor) -> Float[Tensor, "R K K"]:
        """gram + axis border^T + border axis^T, in coordinates whose first one is the unit vector `axis`.

        A large mean then stands in one row and column, and takes no precision from the other entries.
        """
        first = torch.zeros_like(axis)
        first[:, 0] = 1.0
        mirror = torch.nn.functional.normalize(first - axis, dim=1) * (axis.square().sum(1, keepdim=True) > 0.5)
        self._mirrors[variant] = mirror
        half = gram @ mirror[..., None]  # R, K, 1
        cross = 2 * (half - mirror[..., None] * (mirror[:, None] @ half)) @ mirror[:, None]
        gram = gram - cross - cross.mT
        border = self.turned(border[..., None], variant)[..., 0]
        gram[:, 0] += border
        gram[:, :, 0] += border
        return gram

    def _spread(self, block: Float[Tensor, "R N b"], variant: Variant) -> Float[Tensor, "R D b"]:
        """H^T U of the variant's tokens H, for columns U."""
        if variant.trimmed:
            block = block * self.kept[..., None]
        basis = self.tokens.mT @ block
        if not variant.centred:
            basis = basis + self.pivot[:, :, None] * (block * self.mask[..., None]).sum(1, keepdim=True)
        return basis

    # ------------------------------------------------------------ N x N

    @cached_property
    def _product(self) -> Float[Tensor, "R K K"]:
        return self_product(self.tokens if self.by_tokens else self.tokens.mT, self.exact)

    def _token_side(self, variant: Variant) -> Float[Tensor, "R N N"]:
        gram = self._product
        present = (self.kept if variant.trimmed else self.mask).to(gram.dtype)
        if variant.trimmed:
            gram = gram * present[:, :, None] * present[:, None, :]
        if not variant.centred:
            root = present.sum(1, keepdim=True).sqrt()
            axis = present / root.clamp(min=1)
            projected = (self.tokens @ self.pivot[..., None])[..., 0] * present
            border = root * projected + 0.5 * root.square() * self.pivot.square().sum(1, keepdim=True) * axis
            return self._with_mean(variant, gram, axis, border)
        if self.trimmed and not variant.trimmed:
            shares = present / present.sum(1, keepdim=True).clamp(min=1)
            rows = (gram @ shares[..., None])[..., 0]
            cross = (rows - 0.5 * (rows * shares).sum(1, keepdim=True))[:, :, None] * present[:, None, :]
            gram = (gram - cross - cross.mT) * (present[:, :, None] * present[:, None, :])
        return gram

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


def self_product(x: Float[Tensor, "R N D"], exact: bool = True) -> Float[Tensor, "R N N"]:
    """x x^T. Not `exact` on a GPU: of x = high + low in bfloat16, accumulated in float32, without low low^T."""
    if exact or not x.is_cuda:
        return x @ x.mT
    high = x.bfloat16()
    low = (x - high).bfloat16()
    cross = torch.bmm(high, low.mT, out_dtype=torch.float32)
    return torch.bmm(high, high.mT, out_dtype=torch.float32) + cross + cross.mT
