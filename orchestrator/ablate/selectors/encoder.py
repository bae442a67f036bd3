"""Choices made from the vision encoder's attention and keys. V visual tokens; `n` are kept.

Attention is that of the class token, or what each patch receives on average where there is none.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from orchestrator.ablate.selectors.kinds import Wanted
from orchestrator.ablate.selectors.states import by_score
from orchestrator.models.reduction import Kept, Seen


def _encoder(seen: Seen) -> tuple[Float[Tensor, " V"], Float[Tensor, "V E"]]:
    assert seen.encoder is not None
    assert seen.encoder_keys is not None
    return seen.encoder, normalize(seen.encoder_keys, dim=1)


def fastervlm(wanted: Wanted) -> Int[Tensor, " V"]:
    """By attention of the class token (Zhang et al. 2024)."""
    return by_score(_encoder(wanted.seen)[0])


def visionzip(wanted: Wanted) -> Kept:
    """Dominant tokens by attention; of the rest, evenly spaced ones to which the mean of the others most like them is
    added (Yang et al. 2025)."""
    attention, unit = _encoder(wanted.seen)
    n = wanted.n
    n_targets = min(n - 1, round(n * wanted.settings["contextual_share"]))
    order = by_score(attention)
    dominant, rest = order[: n - n_targets].sort().values, order[n - n_targets :].sort().values
    step = max(1, len(rest) // max(1, n_targets))
    targets = rest[::step][:n_targets]
    others = rest[~torch.isin(rest, targets)]
    weights = torch.zeros(n, len(attention))
    index = torch.cat([dominant, targets])
    weights[torch.arange(n), index] = 1.0
    if n_targets and len(others):
        assigned = (unit[others] @ unit[targets].T).argmax(dim=1)
        counts = torch.bincount(assigned, minlength=n_targets)
        weights[len(dominant) + assigned, others] = 1.0 / counts[assigned].float()
    return Kept(index, weights)


def prumerge(wanted: Wanted) -> Kept:
    """The most attended tokens, each with its nearest others (cosine of keys) added by their attention, and one token
    for all the others, added by theirs (Shang et al. 2025). The last stands at the most attended of those."""
    attention, unit = _encoder(wanted.seen)
    n = wanted.n
    share = attention.masked_fill(attention.isinf(), 0.0)
    order = by_score(attention)
    centres, others = order[: max(1, n - 1)], order[max(1, n - 1) :]
    weights = torch.zeros(n, len(attention))
    likeness = unit[centres] @ unit.T
    likeness[torch.arange(len(centres)), centres] = -torch.inf
    n_near = min(len(attention) - 1, max(1, round(len(attention) * wanted.settings["neighbours_share"])))
    near = likeness.topk(n_near, dim=1).indices
    weights[: len(centres)].scatter_(1, near, share[near])
    weights[torch.arange(len(centres)), centres] += 1.0
    if n == 1:
        return Kept(centres, weights)
    weights[-1, others] = share[others]
    return Kept(torch.cat([centres, others[:1]]), weights)
