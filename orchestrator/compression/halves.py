"""Matrix products for memory-bound devices: float32 as the sum of two bfloat16 halves, accumulated in float32.

Shapes: R rows, N tokens, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LEAN = {"cuda"}
"""Devices on which states are read in their own dtype, products use halves, and no step depends on a value."""


def self_product(x: Float[Tensor, "R N D"], exact: bool = True) -> Float[Tensor, "R N N"]:
    """x x^T; on a GPU by `halves_product` unless `exact`."""
    return x @ x.mT if exact or x.device.type not in LEAN else halves_product(x)


def halves_product(x: Float[Tensor, "R N D"], factor: Float[Tensor, "R N 1"] | None = None) -> Float[Tensor, "R N N"]:
    """y y^T, y = x times factor = high + low in bfloat16, accumulated in float32, without low low^T."""
    factor = x.new_ones(1, 1, 1) if factor is None else factor
    high = torch.mul(x, factor, out=torch.empty_like(x, dtype=torch.bfloat16))
    minus_low = torch.addcmul(high, x, factor, value=-1, out=torch.empty_like(high))
    gram = wide_product(high, high.mT)
    cross = wide_product(high, minus_low.mT)
    return gram.sub_(cross).sub_(cross.mT)


def wide_product(a: Float[Tensor, "R N K"], b: Float[Tensor, "R K M"]) -> Float[Tensor, "R N M"]:
    """Product of bfloat16 matrices, accumulated and returned in float32."""
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()
