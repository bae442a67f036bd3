"""Logistic probes: the penalty by cross-validation, then the final fit, both by the batched solver (`newton.py`).

Shapes: B feature matrices (positions), n images, k rotated width (k1 with a bias), C classes, T targets, A penalties, K
folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orchestrator.probes.newton import make_problems, solve

TOGETHER = {"cpu": False, "cuda": True}
"""Whether all penalties, and targets of any number of classes, are one batch: few launches of large kernels. On a CPU
each penalty starts from the last one's fits, and targets of equal class count are a batch, for less work."""
BATCH_BYTES = {"cpu": 2**19, "cuda": 2**30}  # logits of a batch of matrices: within a core's cache, or a GPU's memory


@dataclass
class LogisticFit:
    """Result of T targets of at most C classes on B feature matrices (A penalties)."""

    penalty: Int[Tensor, "B T"]
    """Index into the penalties."""
    rotated: Float[Tensor, "B C T k1"]
    """Weights on Q; the last column is the bias."""
    inner_loss: Float[Tensor, "B A T"]
    """Cross-entropy of held-out inner folds; 0 for a single penalty, which is not cross-validated."""


def fit_logistic(
    Q: Float[Tensor, "B n k"],
    s: Float[Tensor, "B k"],
    codes: Int[Tensor, "T n"],
    valid: Float[Tensor, "T n"],
    fold: Int[Tensor, " n"],
    penalties: tuple[float, ...],
    n_classes: Int[Tensor, " T"],
) -> LogisticFit:
    """Fit T targets on each matrix; each penalty is chosen by K-fold cross-entropy.

    The final fit on all rows, at the chosen penalty, starts from the mean of the folds' fits. All penalties are tried,
    without early stopping: if classes differ in directions of low variance, the held-out loss first rises at strong
    penalties, which use only directions of high variance, and later falls far below its start. Penalties are relative
    to the number of valid images. A single penalty needs no folds.
    """
    K = int(fold.max()) + 1 if len(penalties) > 1 else 0
    limit, a_penalty = BATCH_BYTES[Q.device.type], Q.element_size() * Q.shape[1] * len(codes) * max(K, 1)
    a_penalty *= int(n_classes.max())
    at_once = max(1, min(len(penalties), limit // a_penalty)) if TOGETHER[Q.device.type] else 1
    size = max(1, limit // (a_penalty * at_once))
    parts = [
        _fit_paths(Q[b : b + size], s[b : b + size], codes, valid, fold, K, penalties, n_classes, at_once)
        for b in range(0, len(Q), size)
    ]
    return LogisticFit(
        torch.cat([part.penalty for part in parts]),
        torch.cat([part.rotated for part in parts]),
        torch.cat([part.inner_loss for part in parts]),
    )


def _fit_paths(
    Q: Tensor,
    s: Tensor,
    codes: Tensor,
    valid: Tensor,
    fold: Tensor,
    K: int,
    penalties: tuple[float, ...],
    n_classes: Tensor,
    at_once: int,
) -> LogisticFit:
    B, T, C = len(Q), len(codes), int(n_classes.max())
    n_valid = valid.sum(1)
    best = torch.zeros(B, T, dtype=torch.int64, device=Q.device)
    start = Q.new_zeros(B, C, T, Q.shape[2] + 1)
    inner = Q.new_full((B, len(penalties), T), torch.inf if K else 0.0)
    if K:
        inside = (fold == torch.arange(K, device=fold.device)[:, None]).to(Q.dtype)  # K n
        used, held_out = valid[:, None] * (1 - inside), valid[:, None] * inside  # T K n
        each = torch.arange(T, device=Q.device).repeat_interleave(K)
        problems = make_problems(Q, s, codes[each], used.flatten(0, 1), n_classes[each], C)
        W = start[:, :, each]
        order = sorted(range(len(penalties)), key=lambda a: -penalties[a])
        losses: list[Tensor] = []
        means: list[Tensor] = []
        for group in (order[a : a + at_once] for a in range(0, len(order), at_once)):
            # each fold starts from its own fit at the last penalty, never from a fit that used the held-out rows
            A = len(group)
            some = problems.take(torch.arange(T * K, device=Q.device).repeat(A)) if A > 1 else problems
            alpha = Q.new_tensor([penalties[a] for a in group])[:, None] * n_valid[each]
            W = solve(some, alpha.flatten().expand(B, -1), W.repeat(1, 1, A, 1))
            logits = some.logits(W).view(B, C, A, T, K, -1)
            truth = codes[None, None, None, :, None].expand(B, 1, A, -1, K, -1)
            chosen = logits.gather(1, truth)[:, 0]  # B A T K n
            losses.append(((torch.logsumexp(logits, 1) - chosen) * held_out).sum((3, 4)) / n_valid)
            means.append(W.view(B, C, A, T, K, -1).mean(4))
            W = W[:, :, -T * K :]
        loss = torch.cat(losses, 1)
        place = loss.nan_to_num(torch.inf).argmin(1)  # B T
        start = torch.cat(means, 2).gather(2, place[:, None, None, :, None].expand(B, C, 1, T, start.shape[3]))[:, :, 0]
        by_penalty = torch.tensor(order, device=Q.device)
        best, inner[:, by_penalty] = by_penalty[place], loss
    alpha = Q.new_tensor(penalties)[best] * n_valid
    final = solve(make_problems(Q, s, codes, valid, n_classes, C), alpha, start)
    return LogisticFit(best, final, inner)
