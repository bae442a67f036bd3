"""Selection by visual states alone. V tokens, D width, K kept; `n` is K."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from orchestrator.ablate.selectors.kinds import Request
from orchestrator.models.reduction import Kept

Order = Int[Tensor, " V"]


def by_score(scores: Float[Tensor, " V"]) -> Order:
    """Indices by descending score; ties in the original order."""
    return torch.argsort(scores, descending=True, stable=True)


def random_order(request: Request) -> Order:
    """A uniform order that depends on the seed sequence alone."""
    draws = np.random.default_rng(list(request.seed)).random(len(request.seen.states), dtype=np.float32)
    return by_score(torch.from_numpy(draws))


def norm(request: Request) -> Order:
    """By Euclidean norm."""
    return by_score(request.seen.states.norm(dim=1))


def similarity(request: Request) -> Order:
    """By smallest mean cosine with the other tokens."""
    unit = normalize(request.seen.states, dim=1)
    return by_score(-(unit @ unit.sum(dim=0)))


def leverage(request: Request) -> Order:
    """By leverage in the top singular subspace."""
    return by_score(leverage_scores(request.seen.states, int(request.settings["rank"])))


def leverage_scores(states: Float[Tensor, "V D"], rank: int) -> Float[Tensor, " V"]:
    """Squared norms of the rows of the first `rank` left singular vectors, from the Gram matrix of the smaller side."""
    x = states.double()
    wide = x.shape[0] <= x.shape[1]
    gram = (x @ x.T if wide else x.T @ x).numpy()
    last = len(gram) - 1
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=[max(0, last - rank + 1), last])
    real = values > values[-1] * 1e-10
    values, vectors = torch.from_numpy(values[real]), torch.from_numpy(vectors[:, real])
    left = vectors if wide else (x @ vectors) / values.sqrt()
    return left.square().sum(dim=1).float()


def divprune(request: Request) -> Order:
    """Greedy max-min diversity (Alvar et al. 2025): start from the token whose nearest neighbour is farthest, then add
    the one farthest from all that are kept. The order is nested: fewer tokens are its beginning."""
    unit = normalize(request.seen.states, dim=1)
    distance = (1.0 - unit @ unit.T).numpy()
    np.fill_diagonal(distance, np.inf)
    chosen = [int(distance.min(axis=1).argmax())]
    nearest = distance[chosen[0]].copy()
    nearest[chosen[0]] = -np.inf
    for _ in range(request.n - 1):
        best = int(nearest.argmax())
        chosen.append(best)
        np.minimum(nearest, distance[best], out=nearest)
        nearest[best] = -np.inf
    return torch.tensor(chosen)


def tome(request: Request) -> Kept:
    """Bipartite soft matching (Bolya et al. 2023), merging at most half of the tokens per step, until `n` are left.

    Every second token is matched with the most similar of the others; the most similar pairs are replaced by their
    mean, weighted by the number of tokens merged into each.
    """
    x, v = request.seen.states, len(request.seen.states)
    members = torch.eye(v)  # (current tokens, V): tokens merged into each
    anchors = torch.arange(v)
    while len(anchors) > request.n:
        size = members.sum(dim=1, keepdim=True)
        unit = normalize(members @ x / size, dim=1)
        sources, targets = torch.arange(0, len(unit), 2), torch.arange(1, len(unit), 2)
        best = (unit[sources] @ unit[targets].T).max(dim=1)
        order = torch.argsort(best.values, descending=True, stable=True)
        n_merged = min(len(anchors) - request.n, len(targets))
        merged, unmerged = order[:n_merged], order[n_merged:]
        into = members[targets].index_add(0, best.indices[merged], members[sources[merged]])
        members = torch.cat([members[sources[unmerged]], into])
        anchors = torch.cat([anchors[sources[unmerged]], anchors[targets]])
    return Kept(anchors, members / members.sum(dim=1, keepdim=True))
