"""Selection by the decoder's attention and keys. V visual tokens, T tokens of the question; `n` are kept."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from orchestrator.ablate.selectors.kinds import Request
from orchestrator.ablate.selectors.states import by_score
from orchestrator.models.reduction import Seen

Order = Int[Tensor, " V"]


def _weights(seen: Seen) -> Float[Tensor, "R V"]:
    assert seen.attention is not None
    return seen.attention


def fastv(request: Request) -> Order:
    """By attention of the prompt's last token, mean over heads (Chen et al. 2024; Xing et al. 2025)."""
    return by_score(_weights(request.seen)[-1])


def question_attention(request: Request) -> Order:
    """By attention of the question's tokens, mean over heads and those tokens."""
    if request.seen.given is not None:
        return by_score(request.seen.given)
    weights = _weights(request.seen)
    return by_score(weights[:-1].mean(dim=0) if len(weights) > 1 else weights[0])


def debiased_attention(request: Request) -> Order:
    """By attention of the last token over its trend a exp(b i) in the token's place i (Zhao et al. 2025).

    The trend is the least-squares line through the logarithms of the image's own weights.
    """
    weights = _weights(request.seen)[-1].double().clamp(min=1e-12)
    place = request.seen.order.double() - request.seen.order.double().mean()
    log = weights.log()
    slope = (place * (log - log.mean())).sum() / place.square().sum().clamp(min=1e-12)
    return by_score((log - slope * place).float())


def sparsevlm(request: Request) -> Order:
    """By attention of raters: question tokens whose similarity to the image exceeds the mean (Zhang et al. 2025).

    Similarity is the softmax over text of the inner products of visual and text states, averaged over the image.
    """
    assert request.seen.text is not None
    weights = _weights(request.seen)
    if not len(request.seen.text):
        return by_score(weights[-1])
    likeness = (request.seen.states @ request.seen.text.T).softmax(dim=1).mean(dim=0)
    raters = likeness > likeness.mean()
    if not raters.any():  # all alike
        raters[:] = True
    return by_score(weights[:-1][raters].mean(dim=0))


def dart(request: Request) -> Order:
    """Pivots, then the tokens least similar to each (Wen et al. 2025).

    Pivots are the visual and question tokens whose keys have the largest L1 norm. In order of position, each adds an
    equal part of the budget: the tokens not yet kept that have the smallest cosine with it.
    """
    seen, n, settings = request.seen, request.n, request.settings
    assert seen.keys is not None
    image = _largest(seen.keys, min(int(settings["image_pivots"]), n))
    pivots = [seen.states[i] for i in image]
    if seen.text_keys is not None and seen.text is not None:
        pivots += [seen.text[i] for i in _largest(seen.text_keys, int(settings["text_pivots"]))]
    chosen, share = list(image), -(-(n - len(image)) // len(pivots))
    free = torch.ones(len(seen.states), dtype=torch.bool)
    free[chosen] = False
    for pivot in pivots:
        likeness = cosine_similarity(seen.states, pivot[None], dim=1).masked_fill(~free, torch.inf)
        added = torch.argsort(likeness, stable=True)[: min(share, n - len(chosen))].tolist()
        chosen += added
        free[added] = False
    return torch.tensor(chosen)


def _largest(keys: Float[Tensor, "N E"], n: int) -> list[int]:
    """Indices of the keys of largest L1 norm, ascending."""
    return by_score(keys.abs().sum(dim=1))[:n].sort().values.tolist()
