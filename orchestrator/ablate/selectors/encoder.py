"""Selection by the vision encoder's attention and keys. V visual tokens; `n` are kept.

Attention is that of the class token, or without one the mean attention that each patch receives.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from orchestrator.ablate.selectors.kinds import Request
from orchestrator.ablate.selectors.states import by_score
from orchestrator.models.reduction import Kept, Seen


def _encoder(seen: Seen) -> tuple[Float[Tensor, " V"], Float[Tensor, "V E"]]:
    assert seen.encoder is not None
    assert seen.encoder_keys is not None
    return seen.encoder, normalize(seen.encoder_keys, dim=1)


def fastervlm(request: Request) -> Int[Tensor, " V"]:
    """By attention of the class token (Zhang et al. 2024)."""
    return by_score(_encoder(request.seen)[0])


def visionzip(request: Request) -> Kept:
    """Dominant tokens by attention; of the rest, evenly spaced targets, to which the mean of their most similar tokens
    is added (Yang et al. 2025)."""
    attention, unit = _encoder(request.seen)
    n = request.n
    n_targets = min(n - 1, round(n * request.settings["contextual_share"]))
    order = by_score(attention)
    dominant, rest = order[: n - n_targets].sort().values, order[n - n_targets :].sort().values
    step = max(1, len(rest) // max(1, n_targets))
    targets = rest[::step][:n_targets]
    merged = rest[~torch.isin(rest, targets)]
    weights = torch.zeros(n, len(attention))
    index = torch.cat([dominant, targets])
    weights[torch.arange(n), index] = 1.0
    if n_targets and len(merged):
        assigned = (unit[merged] @ unit[targets].T).argmax(dim=1)
        counts = torch.bincount(assigned, minlength=n_targets)
        weights[len(dominant) + assigned, merged] = 1.0 / counts[assigned].float()
    return Kept(index, weights)


def prumerge(request: Request) -> Kept:
    """The most attended tokens, each with its nearest neighbours (cosine of keys) added, weighted by attention; and one
    token for the attention-weighted sum of all others, at the most attended of them (Shang et al. 2025)."""
    attention, unit = _encoder(request.seen)
    n = request.n
    share = attention.masked_fill(attention.isinf(), 0.0)
    order = by_score(attention)
    centres, merged = order[: max(1, n - 1)], order[max(1, n - 1) :]
    weights = torch.zeros(n, len(attention))
    likeness = unit[centres] @ unit.T
    likeness[torch.arange(len(centres)), centres] = -torch.inf
    n_near = min(len(attention) - 1, max(1, round(len(attention) * request.settings["neighbours_share"])))
    near = likeness.topk(n_near, dim=1).indices
    weights[: len(centres)].scatter_(1, near, share[near])
    weights[torch.arange(len(centres)), centres] += 1.0
    if n == 1:
        return Kept(centres, weights)
    weights[-1, merged] = share[merged]
    return Kept(torch.cat([centres, merged[:1]]), weights)
