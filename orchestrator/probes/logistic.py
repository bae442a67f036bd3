"""L2-regularised multinomial logistic regression, batched over problems on shared features.

Shapes: B feature matrices (positions), n images, k rotated width (k1 with a column of ones), C classes, P problems
(attribute x fold x control), the same P problems on each matrix. Images are the last axis of logits, (B, C, P, n), so
that elementwise steps are contiguous in memory.

Objective of one problem, as scikit-learn's `LogisticRegression` with C = 1 / alpha: mean cross-entropy over the
problem's n rows + lam/2 |W|^2 with lam = alpha / n, bias unpenalised. alpha is absolute and the same in all folds, as
in scikit-learn. For two classes scikit-learn penalises the one vector w = w1 - w0, which in the symmetric form here is
2 lam.

Solved by L-BFGS. The initial Hessian approximation is the one at W = 0, diag(s/n)/C + lam: diagonal in Q, hence shared
by all problems. Logits are linear in the step, so a whole line search costs one product with Q; the labels enter
through one constant product. Both products of an iteration are large matrix products over all problems.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MEMORY = 8
MAX_ITERATIONS = 300
TOLERANCE = 1e-4  # largest gradient entry, scikit-learn's default
BATCH_BYTES = {"cpu": 2**19, "cuda": 2**30}  # logits of a batch of matrices: within a core's cache, or a GPU's memory


@dataclass(frozen=True)
class Problems:
    """P problems of equal class count on B feature matrices with a column of ones appended."""

    Q: Float[Tensor, "B n k1"]
    s: Float[Tensor, "B k1"]
    weight: Float[Tensor, "P n"]
    """Weights of each problem's rows, summing to one; zero for held-out, missing or excluded images."""
    labelled: Float[Tensor, "B C P k1"]
    """Weighted sum of the rows of each class; the labels enter only through it."""
    n_rows: Float[Tensor, " P"]
    """Number of used rows of each problem."""

    def take(self, index: Int[Tensor, " p"]) -> Problems:
        """The problems at `index`."""
        weight, labelled, n_rows = self.weight[index], self.labelled[:, :, index], self.n_rows[index]
        return replace(self, weight=weight, labelled=labelled, n_rows=n_rows)

    def take_matrices(self, index: Int[Tensor, " b"]) -> Problems:
        """The problems on the feature matrices at `index`."""
        return replace(self, Q=self.Q[index], s=self.s[index], labelled=self.labelled[index])


def make_problems(
    Q: Float[Tensor, "B n k"], s: Float[Tensor, "B k"], codes: Int[Tensor, "P n"], used: Float[Tensor, "P n"], C: int
) -> Problems:
    """Problems on Q with labels `codes` (0..C-1); `used` is 1 for the rows of a problem, else 0."""
    B, n, _ = Q.shape
    Q1 = torch.cat([Q, Q.new_ones(B, n, 1)], 2)
    s1 = torch.cat([s / n, s.new_ones(B, 1)], 1)
    n_rows = used.sum(1)
    weight = used / n_rows[:, None]
    onehot = (codes == torch.arange(C, device=codes.device)[:, None, None]) * weight  # C P n
    labelled = (onehot.flatten(0, 1).to(Q.dtype) @ Q1).view(B, C, len(codes), -1)
    return Problems(Q1, s1, weight, labelled, n_rows)


def solve(
    problems: Problems,
    alpha: Float[Tensor, "B P"],
    W: Float[Tensor, "B C P k1"],
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Float[Tensor, "B C P k1"]:
    """Minimise from W (bias last); converged matrices and problems are removed from the batch."""
    result = W.clone()
    matrices, columns = (torch.arange(size, device=W.device) for size in (W.shape[0], W.shape[2]))
    state = _Descent(problems, alpha, W)
    for iteration in range(max_iterations + 1):
        gradient = state.gradient()
        unfinished = gradient.abs().amax((1, 3)) >= tolerance  # B P
        if iteration == max_iterations or state.stuck or not bool(unfinished.any()):
            break
        keep_b, keep_p = unfinished.any(1).nonzero()[:, 0], unfinished.any(0).nonzero()[:, 0]
        if (
            len(keep_b) * len(keep_p) <= 0.75 * unfinished.numel()
        ):  # removing problems copies the state: only if enough have converged
            result[matrices[:, None], :, columns] = state.W.transpose(1, 2)
            matrices, columns = matrices[keep_b], columns[keep_p]
            gradient, unfinished = gradient[keep_b][:, :, keep_p], unfinished[keep_b][:, keep_p]
            state.narrow(keep_b, keep_p)
        state.step(gradient, unfinished)
    result[matrices[:, None], :, columns] = state.W.transpose(1, 2)
    return result


class _Descent:
    """L-BFGS on all problems of a batch; each has its own curvature pairs and step length."""

    def __init__(self, problems: Problems, alpha: Tensor, W: Tensor) -> None:
        self.p, self.W = problems, W
        n_classes = W.shape[1]
        lam = (alpha / problems.n_rows * (2 if n_classes == 2 else 1))[:, None, :, None]
        self.penalty = torch.cat([lam.expand(-1, -1, -1, W.shape[3] - 1), torch.zeros_like(lam)], 3)  # B 1 P k1
        self.metric = 1.0 / (problems.s[:, None, None] / n_classes + self.penalty)
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.before: tuple[Tensor, Tensor] | None = None
        self.logits = self._product(W)
        self.e, self.total, self.partition = _exponentials(self.logits, self.p.weight)
        self.stuck = False

    def _product(self, W: Tensor) -> Float[Tensor, "B C P n"]:
        return (W.flatten(1, 2) @ self.p.Q.mT).view(*W.shape[:3], -1)

    def narrow(self, keep_b: Tensor, keep_p: Tensor) -> None:
        def cut(tensor: Tensor) -> Tensor:
            return tensor[keep_b][:, :, keep_p]

        self.p = self.p.take_matrices(keep_b).take(keep_p)
        self.W, self.logits, self.e = cut(self.W), cut(self.logits), cut(self.e)
        self.total, self.partition = self.total[keep_b][:, keep_p], self.partition[keep_b][:, keep_p]
        self.penalty, self.metric = cut(self.penalty), cut(self.metric)
        self.pairs = [(cut(a), cut(b), r[keep_b][:, keep_p]) for a, b, r in self.pairs]
        if self.before:
            self.before = (cut(self.before[0]), cut(self.before[1]))

    def gradient(self) -> Float[Tensor, "B C P k1"]:
        weighted = self.e * (self.p.weight / self.total)[:, None]
        gradient = (weighted.flatten(1, 2) @ self.p.Q).view(self.W.shape)
        return gradient.sub_(self.p.labelled).addcmul_(self.penalty, self.W)

    def _direction(self, gradient: Tensor) -> Tensor:
        if self.before:
            moved, old = self.before
            change = gradient - old
            curvature = _dot(moved, change)
            inverse = torch.where(curvature > 1e-12, 1.0 / curvature, torch.zeros_like(curvature))
            self.pairs = [*self.pairs[-(MEMORY - 1) :], (moved, change, inverse)]
        q = gradient.clone()
        coefficients = []
        for a, b, r in reversed(self.pairs):
            c = r * _dot(a, q)
            q.addcmul_(b, _wide(c), value=-1)
            coefficients.append(c)
        q.mul_(self.metric)
        for (a, b, r), c in zip(self.pairs, reversed(coefficients), strict=True):
            q.addcmul_(a, _wide(c - r * _dot(b, q)))
        return q.neg_()

    def step(self, gradient: Tensor, unfinished: Bool[Tensor, "B P"]) -> None:
        direction = self._direction(gradient)
        along = self._product(direction)
        slope = _dot(gradient, direction)
        penalised = self.penalty * direction
        # apart from the partition function, the loss is quadratic in the step length: its two coefficients
        linear, square = _dot(self.W, penalised) - _dot(self.p.labelled, direction), _dot(direction, penalised)
        # Newton step length along the direction, from the exact second derivative
        weighted = self.e * along
        mean = weighted.sum(1) / self.total
        second = weighted.mul_(along).sum(1) / self.total - mean.square()  # B P n
        t = -slope / ((self.p.weight * second).sum(2) + square).clamp_min(1e-20)
        slack = 8 * torch.finfo(t.dtype).eps * (1.0 + self.partition.abs())  # rounding error of the loss
        for _ in range(12):
            moved = torch.addcmul(self.logits, _wide(t), along)
            e, total, partition = _exponentials(moved, self.p.weight)
            rise = partition - self.partition + t * linear + 0.5 * t * t * square
            worse = ~(rise <= 1e-4 * t * slope + slack)
            if not bool(worse.any()):
                break
            t = torch.where(worse, 0.5 * t, t)
        else:
            t = torch.where(worse, torch.zeros_like(t), t)
            moved = torch.addcmul(self.logits, _wide(t), along)
            e, total, partition = _exponentials(moved, self.p.weight)
            self.stuck = not bool((t[unfinished] != 0).any())
        change = _wide(t) * direction
        self.before = (change, gradient)
        self.W, self.logits, self.e, self.total, self.partition = self.W + change, moved, e, total, partition


def _exponentials(
    logits: Float[Tensor, "B C P n"], weight: Float[Tensor, "P n"]
) -> tuple[Float[Tensor, "B C P n"], Float[Tensor, "B P n"], Float[Tensor, "B P"]]:
    """Shifted exponentials, their sums over classes, and each problem's mean log partition function."""
    shift = logits.amax(1)
    e = (logits - shift[:, None]).exp_()
    total = e.sum(1)
    return e, total, (weight * (total.log() + shift)).sum(2)


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, "B P"]:
    return (a * b).sum((1, 3))


def _wide(t: Float[Tensor, "B P"]) -> Float[Tensor, "B 1 P 1"]:
    return t[:, None, :, None]


@dataclass
class LogisticFit:
    """Result of T targets of equal class count on B feature matrices (A penalties)."""

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
    n_classes: int,
) -> LogisticFit:
    """Fit T targets on each matrix; each penalty is chosen by K-fold cross-entropy, in descending order of penalties.

    Each fold is warm-started from its own fit at the previous penalty, never from a fit that used the held-out rows.
    The final fit on all rows, at the chosen penalty, starts from the mean of the folds' fits.
    All penalties are tried, without early stopping: if classes differ in directions of low variance, the held-out loss
    first rises at strong penalties, which use only directions of high variance, and later falls far below its start.
    Penalties are relative to the number of valid images. A single penalty needs no folds.
    """
    K = int(fold.max()) + 1 if len(penalties) > 1 else 0
    a_matrix = Q.element_size() * Q.shape[1] * n_classes * len(codes) * max(K, 1)
    size = max(1, BATCH_BYTES[Q.device.type] // a_matrix)
    parts = [
        _fit_paths(Q[b : b + size], s[b : b + size], codes, valid, fold, K, penalties, n_classes)
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
    n_classes: int,
) -> LogisticFit:
    B, T = len(Q), len(codes)
    n_valid = valid.sum(1)
    best = torch.zeros(B, T, dtype=torch.int64, device=Q.device)
    start = Q.new_zeros(B, n_classes, T, Q.shape[2] + 1)
    inner = Q.new_full((B, len(penalties), T), torch.inf if K else 0.0)
    if K:
        inside = (fold == torch.arange(K, device=fold.device)[:, None]).to(Q.dtype)  # K n
        used, held_out = valid[:, None] * (1 - inside), valid[:, None] * inside  # T K n
        problems = make_problems(Q, s, codes.repeat_interleave(K, 0), used.flatten(0, 1), n_classes)
        W = start.repeat_interleave(K, 2)
    for a in sorted(range(len(penalties)), key=lambda a: -penalties[a]) if K else ():
        W = solve(problems, (penalties[a] * n_valid).repeat_interleave(K).expand(B, -1), W)
        logits = (W.flatten(1, 2) @ problems.Q.mT).view(B, n_classes, T, K, -1)
        chosen = logits.gather(1, codes[None, None, :, None].expand(B, 1, -1, K, -1))[:, 0]
        loss = ((torch.logsumexp(logits, 1) - chosen) * held_out).sum((2, 3)) / n_valid
        better = loss < inner.amin(1)
        best = torch.where(better, a, best)
        start = torch.where(better[:, None, :, None], W.unflatten(2, (T, K)).mean(3), start)
        inner[:, a] = loss
    alpha = Q.new_tensor(penalties)[best] * n_valid
    final = solve(make_problems(Q, s, codes, valid, n_classes), alpha, start)
    return LogisticFit(best, final, inner)
