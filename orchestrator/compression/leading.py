"""Leading blocks of Gram matrices: trace, Frobenius norm and the space of the largest eigenvalues, for every variant.

On a CPU each variant's matrix is formed; on a GPU all variants take their products from one matrix.

Shapes: R rows (an image, group and layer each), N tokens, D width, V variants, b columns of a leading block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.compression.gram import Grams, Variant
from orchestrator.compression.subspace import leading_rows


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


def leading_blocks(grams: Grams, variants: Sequence[Variant]) -> dict[Variant, Leading]:
    """Trace, norm and leading block of each variant."""
    variants = list(dict.fromkeys(grams.plain(v) for v in variants))
    if not variants:
        return {}
    if grams.by_tokens and grams.halves:
        return _token_leading(grams, variants)
    return _matrix_leading(grams, variants)


def _matrix_leading(grams: Grams, variants: Sequence[Variant]) -> dict[Variant, Leading]:
    """The same from explicit matrices, in one batch: fastest while they stay in a processor's caches."""
    matrices = [grams.matrix(variant) for variant in variants]
    n = len(grams.mask)

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
        basis = grams.turned(some, variant)
        if grams.by_tokens:
            basis = grams.spread(basis, variant)
        # not `ritz` of tokens: beside a massive one its rounding error exceeds a faint direction's squared length
        leading[variant] = Leading(trace, norm, ritz, basis @ basis.mT, basis.mT)
    return leading


def _token_leading(grams: Grams, variants: Sequence[Variant]) -> dict[Variant, Leading]:
    """Leading blocks of all variants at once, by products with one matrix; the variants' matrices are never formed.

    With P the product of differences, m a variant's tokens and w a vector: raw, (I - 2 w w^T) m P m (I - 2 w w^T)
    and the border of the mean (`Grams.matrix`); centred with massive tokens, the same with (I - w w^T), w the
    normalised ones; centred without them, m P m.
    """
    gram, n_variants = grams.product, len(variants)
    frames = [_frame(grams, variant) for variant in variants]
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
    basis = grams.down(back.flatten(1, 2)).view(*back.shape[:3], -1)  # R V b D
    shares = back.sum(3)
    for k, variant in enumerate(variants):
        if not variant.centred:
            basis[:, k].addcmul_(shares[:, k, :, None], grams.pivot[:, None])
    traces, norms = _sizes(grams, variants, gram, present[:, :, 0].mT)
    return {
        variant: Leading(traces[:, k], norms[:, k], ritz[:, k], basis[:, k] @ basis[:, k].mT, basis[:, k].mT)
        for k, variant in enumerate(variants)
    }


def _frame(grams: Grams, variant: Variant) -> tuple[Tensor, Tensor, Tensor]:
    """The variant's mask m, w times the root of its factor, and the border in reflected coordinates; (R, N)."""
    present = (grams.kept if variant.trimmed else grams.mask).to(grams.pivot.dtype)
    none = torch.zeros_like(present)
    if not variant.centred:
        axis, border = grams.mean_terms(variant)
        mirror = grams.mirror(variant, axis)
        return present, math.sqrt(2) * mirror, grams.turned(border[:, None], variant)[:, 0]
    if grams.trimmed and not variant.trimmed:
        return present, torch.nn.functional.normalize(present, dim=1), none
    return present, none, none


def _sizes(
    grams: Grams, variants: Sequence[Variant], gram: Float[Tensor, "R N N"], present: Float[Tensor, "R N V"]
) -> tuple[Float[Tensor, "R V"], Float[Tensor, "R V"]]:
    """Traces and Frobenius norms of the variants' matrices."""
    diagonal = gram.diagonal(dim1=1, dim2=2)[..., None]
    trace = (diagonal * present).sum(1)
    square = (present * (gram.square() @ present)).sum(1)
    terms = [grams.mean_terms(v) if not v.centred else None for v in variants]
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
        elif grams.trimmed and not variant.trimmed:  # (I - a a^T) on both sides
            along = (axes[..., k] * image).sum(1)
            t = t - along
            f = f - 2 * image.square().sum(1) + along.square()
        traces.append(t)
        squares.append(f.clamp(min=0))
    return torch.stack(traces, 1), torch.stack(squares, 1).sqrt()
