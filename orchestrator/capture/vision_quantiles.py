"""The quantiles at which vision tokens' states are kept, a function of their number and a seed. Does not import torch.

Quantile k of P is (k + s + u_k) / P; the common shift s and each u_k are drawn from [0, 0.5). Positions are spread over
the image and, for N >= 2 P tokens, distinct.
"""

from __future__ import annotations

import numpy as np


def vision_quantiles(n: int, seed: int) -> np.ndarray:
    """The `n` seeded quantiles, float64 in [0, 1), ascending."""
    draws = np.random.default_rng([seed, n]).random(n + 1) / 2
    return (np.arange(n) + draws[0] + draws[1:]) / max(n, 1)
